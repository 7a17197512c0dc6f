"""Accuracy of integer artifacts beside their float networks: `python -m benchmarks.accuracy --pack DIR`.

Every network of the data pack is compiled for this machine at each uniform precision, first and last layer included,
with at most 512 unlabelled calibration samples, and the artifact classifies the whole `dev` split.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from benchmarks.report import table

NETWORKS = (
    "resnet20_cifar10",
    "resnet56_cifar10",
    "mlperf_tiny_resnet8_cifar10",
    "mobilenetv2_tf_imagenet",
    "squeezenet1_1_imagenet",
    "tiny_darknet_imagenet",
)
PRECISIONS = ("w8a8", "w6a8", "w4a8", "w4a6")
SAMPLES = 512


@dataclass(frozen=True)
class Accuracy:
    """One network at one precision.

    Attributes:
        n: samples of the split.
        float_top1, top1: share of right answers, of the float network and of the artifact.
        agreement: share of samples on which both answer the same.
        weight_bytes: packed weights.
        seconds: of the compilation.
    """

    network: str
    precision: str
    n: int
    float_top1: float
    top1: float
    agreement: float
    weight_bytes: int
    seconds: float


def load_pack(folder: Path) -> ModuleType:
    """The pack's own reader; exits where there is none."""
    spec = importlib.util.spec_from_file_location("pack_load", folder / "load.py")
    if spec is None or spec.loader is None or not (folder / "load.py").exists():
        raise SystemExit(f"{folder} holds no load.py: give the folder of the data pack")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def float_top1(model: Path, data: dict[str, np.ndarray]) -> float:
    """Share of right answers of the float network in onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_inputs()]
    hits = 0
    for start in range(0, len(data["labels"]), 50):
        part = {name: array[start : start + 50] for name, array in data.items()}
        scores = session.run(None, {name: part[name] for name in names})[0].reshape(len(part["labels"]), -1)
        hits += int((scores.argmax(axis=1) == part["labels"]).sum())
    return hits / len(data["labels"])


def measure(model: Path, calib: dict[str, np.ndarray], dev: dict[str, np.ndarray], precision: str) -> dict[str, Any]:
    """n, top1, agreement, weight_bytes and the seconds of the compilation."""
    import qcompile

    begun = time.perf_counter()
    result = qcompile.compile(model, target="cpu", uniform=precision, calib=calib, measure=False)
    seconds = time.perf_counter() - begun
    found = qcompile.evaluate(result.artifact, dev, model)
    figures = {key: found[key] for key in ("n", "top1", "agreement")}
    return figures | {"weight_bytes": result.weight_bytes, "seconds": seconds}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument("--pack", type=Path, required=True, help="folder of the data pack")
    parser.add_argument("--networks", default=",".join(NETWORKS), help="names of pack files, by comma")
    parser.add_argument("--precisions", default=",".join(PRECISIONS), help="uniform precisions, by comma")
    parser.add_argument("--json", type=Path, help="write all figures to this file, after each network")
    options = parser.parse_args(arguments)
    load = load_pack(options.pack)
    rows: list[Accuracy] = []
    for network in options.networks.split(","):
        model = load.model(network)
        calib = {name: array for name, array in load.arrays(network, "calib", SAMPLES).items() if name != "labels"}
        dev = load.arrays(network, "dev")
        real = float_top1(model, dev)
        for precision in options.precisions.split(","):
            rows.append(Accuracy(network, precision, float_top1=real, **measure(model, calib, dev, precision)))
            print(f"{network} {precision}: {rows[-1].top1:.2%} of {real:.2%}", file=sys.stderr, flush=True)
        if options.json is not None:
            options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    lines = [["network", "precision", "n", "float %", "top-1 %", "agreement %", "weight bytes", "compiled in s"]]
    lines += [
        [
            r.network, r.precision, str(r.n), f"{100 * r.float_top1:.2f}", f"{100 * r.top1:.2f}",
            f"{100 * r.agreement:.2f}", str(r.weight_bytes), f"{r.seconds:.0f}",
        ]
        for r in rows
    ]  # fmt: skip
    print(table(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
