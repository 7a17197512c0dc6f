"""Networks compiled for every target, and the integers compared: `python -m benchmarks.identity [MODEL.onnx …]`.

Without arguments: the feed-forward networks of the evaluation pack.  A target that this machine has no compiler or
no emulator for says so; whatever runs must give the reference's integers, all of them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.report import table

PACK = Path(__file__).parents[2] / "shared" / "data"
NETWORKS = (
    "resnet20_cifar10", "resnet20_cifar10_bn", "resnet20_cifar10_dynamo", "resnet32_cifar10", "resnet56_cifar10",
    "mlperf_tiny_resnet8_cifar10", "mlperf_tiny_dscnn_kws", "mlperf_tiny_mobilenetv1_025_vww",
    "mlperf_tiny_ad_autoencoder", "mobilenetv1_025_128_imagenet_dq", "mobilenetv2_tf_imagenet",
    "squeezenet1_1_imagenet", "tiny_darknet_imagenet", "ultraface_rfb320", "fastestdet_coco", "deeplabv3_mnv2_voc",
)  # fmt: skip


def compare(model: Path, bits: str, targets: Sequence[str] | None) -> list[Any]:
    """The outcomes of one model: quantised uniformly from synthetic data, its golden inputs compared."""
    from qcompile import api
    from qcompile.identity import compare_artifact

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "model.qc"
        made = api.compile(model, target="reference", uniform=bits, out=out, measure=False, samples=4)
        return list(compare_artifact(made.artifact, targets))


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare and print; 1 where an integer differs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.identity", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("models", nargs="*", type=Path, help="ONNX files; the evaluation pack where none is given")
    parser.add_argument("--bits", default="w8a8", help="comma-separated, such as w8a8,w4a6")
    parser.add_argument("--targets", help="comma-separated; every target where not given")
    parser.add_argument("--json", type=Path, help="file for the outcomes")
    options = parser.parse_args(arguments)
    models = options.models or [PACK / "models" / f"{name}.onnx" for name in NETWORKS]
    targets = options.targets.split(",") if options.targets else None
    rows, found, wrong = [], [], 0
    for model in models:
        for bits in options.bits.split(","):
            outcomes = compare(model, bits, targets)
            rows += [(model.stem, bits, o.target, str(o)) for o in outcomes]
            found += [{"model": model.stem, "bits": bits, **asdict(o)} for o in outcomes]
            wrong += sum(o.differing for o in outcomes)
            print(
                f"{model.stem} {bits}: " + "; ".join(f"{o.target} {o}" for o in outcomes), file=sys.stderr, flush=True
            )
    print(table([("network", "bits", "target", "integers"), *rows]))
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
