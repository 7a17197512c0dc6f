"""Accuracy of integer artifacts beside their float networks: `python -m benchmarks.accuracy --pack DIR`.

Every network of the data pack is compiled at each row's precision, first and last layer included, with at most 512
unlabelled calibration samples, and the artifact classifies the whole `dev` split.  Rows like `w4a8` are uniform;
`mixed50` and `mixed40` are plans under a budget of so many percent of the 8-bit weight bytes, activations at 8 bits.
All differences are paired: they are of the same images.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pack import load_pack
from benchmarks.report import table

NETWORKS = (
    "resnet20_cifar10",
    "resnet56_cifar10",
    "mlperf_tiny_resnet8_cifar10",
    "mobilenetv2_tf_imagenet",
    "squeezenet1_1_imagenet",
    "tiny_darknet_imagenet",
)
ROWS = ("w8a8", "w6a8", "w4a8", "mixed50", "mixed40", "w4a6")
SAMPLES = 512
BATCH = 50
MIXED = "mixed"


@dataclass(frozen=True)
class Accuracy:
    """One network at one precision.

    Attributes:
        n: samples of the split.
        float_top1, top1: share of right answers, of the float network and of the artifact.
        standard_error: of their difference, paired.
        agreement: share of samples on which both answer the same.
        divergence: from the float network, in nats, mean over all samples.
        weight_bytes: packed weights.
        seconds: of the compilation.
    """

    network: str
    row: str
    rounding: str
    n: int
    float_top1: float
    top1: float
    standard_error: float
    agreement: float
    divergence: float
    weight_bytes: int
    seconds: float


def onnx_scores(model: Path, data: dict[str, np.ndarray]) -> np.ndarray:
    """What onnxruntime finds for each class of each sample, (n, k)."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_inputs()]
    return scores(lambda part: session.run(None, {name: part[name] for name in names})[0], data)


def artifact_scores(artifact: Any, data: dict[str, np.ndarray]) -> np.ndarray:
    """What an artifact finds for each class of each sample, (n, k)."""
    import qcompile

    return scores(lambda part: next(iter(qcompile.run(artifact, part).values())), data)


def scores(run: Callable[[dict[str, np.ndarray]], Any], data: dict[str, np.ndarray]) -> np.ndarray:
    """The outputs of a network for all samples, (n, k), a batch at a time."""
    inputs = {name: array for name, array in data.items() if name != "labels"}
    count = len(next(iter(inputs.values())))
    parts = [run({name: array[i : i + BATCH] for name, array in inputs.items()}) for i in range(0, count, BATCH)]
    return np.concatenate([np.asarray(part).reshape(len(part), -1) for part in parts])


def divergence(real: np.ndarray, found: np.ndarray) -> float:
    """Mean Kullback-Leibler divergence from the float network's softmax, in nats.

    It weighs every answer of every sample and not only which one is largest, so it tells roundings apart that top-1 of
    a few hundred samples cannot.

    Args:
        real, found: scores (n, k), or probabilities, which are taken as they are.
    """
    p, q = log_probabilities(real), log_probabilities(found)
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def log_probabilities(x: np.ndarray) -> np.ndarray:
    """Of the scores of each sample, float64 (n, k)."""
    x = x.astype(np.float64)
    if (x >= 0).all() and np.allclose(x.sum(axis=1), 1, atol=1e-3):
        return np.log(np.maximum(x, 1e-30))
    shifted = x - x.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def paired_error(one: np.ndarray, other: np.ndarray) -> float:
    """Standard error of the difference of two shares of right answers on the same samples.

    Args:
        one, other: bool (n,), whether each answer is right.  Only samples on which they differ count (as in McNemar's
            test).
    """
    n = len(one)
    gained, lost = int((~one & other).sum()), int((one & ~other).sum())
    return math.sqrt(max(gained + lost - (gained - lost) ** 2 / n, 0)) / n


def budget(row: str, full: int) -> int:
    """Bytes of weights a mixed row allows; `full` is what 8 bits take."""
    return full * int(row.removeprefix(MIXED)) // 100


def compiled(model: Path, calib: dict[str, np.ndarray], row: str, rounding: str, full: int, **options: bool) -> Any:
    """The result of the compilation of a row."""
    import qcompile

    limits: dict[str, Any] = {"uniform": row}
    if row.startswith(MIXED):
        limits = {"memory": budget(row, full), "act_bits": (8,)}
    return qcompile.compile(model, target="cpu", calib=calib, measure=False, rounding=rounding, **limits, **options)


def weights_of(model: Path) -> int:
    """Weight bytes at 8 bits: numbers in the weights of all layers."""
    from qcompile.api import capture
    from qcompile.ir import WEIGHTED

    graph = capture(model)
    return sum(graph.const(node, "w").size for node in graph.nodes if node.op in WEIGHTED)


def measured_before(file: Path | None) -> list[Accuracy]:
    """The rows an earlier run wrote, none where there is no such file."""
    if file is None or not file.exists():
        return []
    return [Accuracy(**row) for row in json.loads(file.read_text())]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument("--pack", type=Path, required=True, help="folder of the data pack")
    parser.add_argument("--networks", default=",".join(NETWORKS), help="names of pack files, by comma")
    parser.add_argument("--rows", default=",".join(ROWS), help="precisions, by comma")
    parser.add_argument("--rounding", default="gptq", help="methods of round-weights, by comma")
    parser.add_argument("--no-equalize", action="store_true", help="leave equalize-layers out")
    parser.add_argument("--no-tune", action="store_true", help="leave tune-scales out")
    parser.add_argument(
        "--json", type=Path, help="all figures, written after each row; those it holds are not measured again"
    )
    options = parser.parse_args(arguments)
    load = load_pack(options.pack)
    rows = measured_before(options.json)
    have = {(r.network, r.row, r.rounding) for r in rows}
    ending = (", not equalized" if options.no_equalize else "") + (", not tuned" if options.no_tune else "")
    for network in options.networks.split(","):
        cells = [(row, way) for row in options.rows.split(",") for way in options.rounding.split(",")]
        cells = [cell for cell in cells if (network, cell[0], cell[1] + ending) not in have]
        if not cells:
            continue
        model = load.model(network)
        calib = {name: array for name, array in load.arrays(network, "calib", SAMPLES).items() if name != "labels"}
        dev = load.arrays(network, "dev")
        wanted, labels, full = onnx_scores(model, dev), dev["labels"], weights_of(model)
        real = wanted.argmax(axis=1)
        for row, rounding in cells:
            begun = time.perf_counter()
            result = compiled(
                model, calib, row, rounding, full, equalize=not options.no_equalize, tune=not options.no_tune
            )
            seconds = time.perf_counter() - begun
            given = artifact_scores(result.artifact, dev)
            found = given.argmax(axis=1)
            rows.append(
                Accuracy(
                    network, row, rounding + ending, len(labels), float((real == labels).mean()),
                    float((found == labels).mean()), paired_error(real == labels, found == labels),
                    float((found == real).mean()), divergence(wanted, given), result.weight_bytes, seconds,
                )
            )  # fmt: skip
            print(line(rows[-1]), file=sys.stderr, flush=True)
            if options.json is not None:
                options.json.write_text(json.dumps([asdict(r) for r in rows], indent=1) + "\n")
    print(table([HEADER, *(line(row) for row in rows)]))
    return 0


HEADER = [
    "network", "row", "rounding", "n", "float %", "top-1 %", "± paired", "agreement %", "divergence",
    "weight bytes", "compiled in s",
]  # fmt: skip


def line(r: Accuracy) -> list[str]:
    """A row of the table."""
    return [
        r.network, r.row, r.rounding, str(r.n), f"{100 * r.float_top1:.2f}", f"{100 * r.top1:.2f}",
        f"{100 * r.standard_error:.2f}", f"{100 * r.agreement:.2f}", f"{r.divergence:.4f}", str(r.weight_bytes),
        f"{r.seconds:.0f}",
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
