"""Is an accuracy floor kept on samples nothing has looked at?  `python -m benchmarks.floors --pack DIR`.

Each network is compiled with `--max-drop`; half of `dev`, with labels, judges the plans and the built artifact.  The
other half then says what the artifact really loses.  The drop measured by the judges has a bound, which holds with the
confidence that is stated (`drop below`); plans measured are at most ⌈log2(n + 1)⌉ + 3 of n in each step.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy import SAMPLES, artifact_scores, onnx_scores, paired_error
from benchmarks.pack import load_pack
from benchmarks.report import table

NETWORKS = ("mlperf_tiny_resnet8_cifar10", "resnet20_cifar10", "mlperf_tiny_dscnn_kws")
DROPS = (0.005, 0.01, 0.02)


@dataclass(frozen=True)
class Row:
    """One network under one floor.

    Attributes:
        max_drop: what was asked, a share of all samples.
        judged, judges: what the artifact loses on the samples that judged it, and how many they are.
        below: bound of the drop, with `confidence`.
        unseen, standard_error, samples: what it loses on the others, paired with the float network, and their number.
        evaluations, allowed: plans measured in the steps, and the most there may be.
        weight_bytes: of the artifact.
    """

    network: str
    max_drop: float
    judged: float
    judges: int
    below: float
    confidence: float
    unseen: float
    standard_error: float
    samples: int
    evaluations: list[int]
    allowed: list[int]
    weight_bytes: int
    seconds: float

    @property
    def kept(self) -> bool:
        """Whether the judges' figure keeps the floor, the unseen one the bound, and every step its number of plans."""
        few = all(one <= most for one, most in zip(self.evaluations, self.allowed, strict=True))
        return self.judged <= self.max_drop + 1e-12 and self.unseen <= self.below and few


def most_evaluations(plans: int) -> int:
    """Plans that may be measured of so many."""
    return math.ceil(math.log2(plans + 1)) + 3


def rows_of(network: str, load: Any, drops: Sequence[float]) -> Iterator[Row]:
    """Rows of one network."""
    import qcompile

    model = load.model(network)
    calib = {name: array for name, array in load.arrays(network, "calib", SAMPLES).items() if name != "labels"}
    dev = load.arrays(network, "dev")
    order = np.random.default_rng(0).permutation(len(dev["labels"]))
    half = len(order) // 2
    judges, unseen = ({name: array[part] for name, array in dev.items()} for part in (order[:half], order[half:]))
    real = onnx_scores(model, unseen).argmax(axis=1) == unseen["labels"]
    for drop in drops:
        begun = time.perf_counter()
        found = qcompile.compile(
            model, target="cpu", calib=calib, holdout=judges, max_drop=drop, minimize="memory", measure=False
        )
        right = artifact_scores(found.artifact, unseen).argmax(axis=1) == unseen["labels"]
        accuracy = found.accuracy
        yield Row(
            network, drop, accuracy["built"]["drop"], half, accuracy["built"]["drop_below"], accuracy["confidence"],
            float(real.mean() - right.mean()), paired_error(real, right), len(right),
            [step["evaluations"] for step in accuracy["steps"]],
            [most_evaluations(step["plans"]) for step in accuracy["steps"]], found.weight_bytes,
            time.perf_counter() - begun,
        )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.floors", description=__doc__)
    parser.add_argument("--pack", type=Path, required=True, help="folder of the data pack")
    parser.add_argument("--networks", default=",".join(NETWORKS), help="names of pack files, by comma")
    parser.add_argument("--drops", default=",".join(map(str, DROPS)), help="floors, shares of all samples, by comma")
    parser.add_argument("--json", type=Path, help="write all figures to this file, after each row")
    options = parser.parse_args(arguments)
    load = load_pack(options.pack)
    rows: list[Row] = []
    for network in options.networks.split(","):
        for row in rows_of(network, load, [float(drop) for drop in options.drops.split(",")]):
            rows.append(row)
            print(row, file=sys.stderr, flush=True)
            if options.json is not None:
                options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    lines = [[
        "network", "max drop %", "judged %", "on", "drop below %", "unseen %", "± paired", "on", "plans measured",
        "allowed", "weight bytes", "kept", "s",
    ]]  # fmt: skip
    lines += [
        [
            r.network, f"{100 * r.max_drop:.1f}", f"{100 * r.judged:.2f}", str(r.judges), f"{100 * r.below:.2f}",
            f"{100 * r.unseen:.2f}", f"{100 * r.standard_error:.2f}", str(r.samples), "+".join(map(str, r.evaluations)),
            "+".join(map(str, r.allowed)), str(r.weight_bytes), "yes" if r.kept else "no", f"{r.seconds:.0f}",
        ]
        for r in rows
    ]  # fmt: skip
    print(table(lines))
    print(f"kept in {sum(r.kept for r in rows)} of {len(rows)} rows")
    return int(not all(row.kept for row in rows))


if __name__ == "__main__":
    sys.exit(main())
