"""Is the chosen plan ever worse than the best uniform plan of the same budget?

`python -m benchmarks.budgets --pack DIR`.  For each network and each of several budgets of weight bytes the planner
chooses as `qcompile MODEL --memory` does, on the held-out quarter of the calibration samples.  Then the chosen plan and
every uniform plan that keeps the budget are run on samples that neither the analyses nor the choice have seen (`dev`),
with the weights plans are compared by.  "best uniform" is the one with the least loss there, in hindsight, which
favours uniform plans.  These two are run once more with the weights they really get; that decides which one is worse.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pack import load_pack
from benchmarks.report import table

NETWORKS = ("resnet20_cifar10", "mlperf_tiny_resnet8_cifar10", "mlperf_tiny_dscnn_kws")
SHARES = (0.32, 0.36, 0.4, 0.45, 0.5, 0.55, 0.625, 0.7, 0.75, 0.875)
"""Budgets as shares of the bytes at 8 bits: between uniform widths and on them."""
SAMPLES = 512
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Row:
    """One network under one budget.

    Attributes:
        budget, bytes: of packed weights.
        chosen: what won ("solver", "runner-up …", "uniform …").
        loss, top1: of the chosen plan on the verification samples, with the weights it really gets.
        compared: its loss with the weights that plans are compared by.
        uniform, uniform_loss, uniform_top1, uniform_compared: of the uniform plan that compares best there.
        gap: between the solver's plan and its bound.
    """

    network: str
    budget: int
    bytes: int
    chosen: str
    loss: float
    top1: float
    compared: float
    uniform: str
    uniform_loss: float
    uniform_top1: float
    uniform_compared: float
    gap: float | None
    seconds: float

    @property
    def worse(self) -> bool:
        return self.loss > self.uniform_loss * (1 + TOLERANCE)


def rows_of(network: str, load: Any, shares: Sequence[float], samples: int, verify: int) -> Iterator[Row]:
    """Rows of one network."""
    from passes.plan.confirm_plan import with_rounded
    from passes.plan.judge import Judge
    from qcompile.compiler import Budgets
    from qcompile.job import Job, silent
    from qcompile.planning import choices, rounded_weights
    from qcompile.units import format_bits

    calib = {name: array for name, array in load.arrays(network, "calib", samples).items() if name != "labels"}
    dev = load.arrays(network, "dev")
    order = np.random.default_rng(0).permutation(len(dev["labels"]))[:verify]
    job = Job(
        model=load.model(network), target="cpu", budgets=Budgets(), uniform=None, plan=None, calib=calib,
        eval_data=None, out=None, example=None, shapes=None, pins={}, weight_bits=None, act_bits=None, passes=None,
        dump=None, samples=None, seed=0, threads=1, overwrite=True, measure=False, progress=silent,
        holdout={name: array[order] for name, array in dev.items()},
    )  # fmt: skip
    _, compiler, _ = job.open()
    compiler.prepare(analyse=True)
    judge: Judge = compiler.judge()
    losses: dict[Any, float] = {}
    rounded: dict[Any, tuple[float, float]] = {}

    def compared(plan: dict[str, tuple[int, int]]) -> float:
        key = tuple(plan.items())
        if key not in losses:
            losses[key] = judge.simulator.loss(choices(plan))
        return losses[key]

    def measured(plan: dict[str, tuple[int, int]]) -> tuple[float, float]:
        key = tuple(plan.items())
        if key not in rounded:
            other = Judge(with_rounded(compiler.graph, rounded_weights(compiler, choices(plan))), compiler.floor, True)
            rounded[key] = other.simulator.loss(choices(plan)), other.drop(choices(plan)).value
        return rounded[key]

    most = sum(
        max(costs.bytes.values()) for layer, costs in _costs(compiler).items() if layer
    )  # the FIXED row has no bytes
    for share in shares:
        begun = time.perf_counter()
        planned = compiler.solve(Budgets(memory=int(most * share)), 1.0)
        seconds = time.perf_counter() - begun
        chosen = next(row for row in planned.candidates if row["chosen"])
        uniform = compiler.reports["solve-bits"].facts["uniform"]
        best = min(uniform, key=compared)
        loss, top1 = measured(planned.bits)
        uniform_loss, uniform_top1 = measured(best)
        yield Row(
            network, int(most * share), int(chosen["predicted"]["memory"]), chosen["plan"], loss, top1,
            compared(planned.bits), format_bits(next(iter(best.values()))), uniform_loss, uniform_top1, compared(best),
            planned.solver.get("gap"), seconds,
        )  # fmt: skip


def _costs(compiler: Any) -> Any:
    from qcompile.pm.facts import COSTS

    return compiler.graph.notes[COSTS]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.budgets", description=__doc__)
    parser.add_argument("--pack", type=Path, required=True, help="folder of the data pack")
    parser.add_argument("--networks", default=",".join(NETWORKS), help="names of pack files, by comma")
    parser.add_argument("--shares", default=",".join(map(str, SHARES)), help="budgets as shares of the 8-bit bytes")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="calibration samples")
    parser.add_argument("--verify", type=int, default=512, help="verification samples")
    parser.add_argument("--json", type=Path, help="write all figures to this file, after each row")
    options = parser.parse_args(arguments)
    load = load_pack(options.pack)
    rows: list[Row] = []
    for network in options.networks.split(","):
        for row in rows_of(
            network, load, [float(s) for s in options.shares.split(",")], options.samples, options.verify
        ):
            rows.append(row)
            print(f"{network} {row.budget}: {row.loss:.4g} against {row.uniform_loss:.4g}", file=sys.stderr, flush=True)
            if options.json is not None:
                options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    lines = [[
        "network", "budget B", "used B", "chosen", "loss", "top-1 %", "best uniform", "loss", "top-1 %", "worse",
        "as compared", "gap %", "solved in s",
    ]]  # fmt: skip
    lines += [
        [
            r.network, str(r.budget), str(r.bytes), r.chosen, f"{r.loss:.4g}", f"{100 * r.top1:.2f}", r.uniform,
            f"{r.uniform_loss:.4g}", f"{100 * r.uniform_top1:.2f}", "yes" if r.worse else "no",
            f"{r.compared:.4g} / {r.uniform_compared:.4g}", "" if r.gap is None else f"{100 * r.gap:.1f}",
            f"{r.seconds:.0f}",
        ]
        for r in rows
    ]  # fmt: skip
    print(table(lines))
    print(f"worse in {sum(r.worse for r in rows)} of {len(rows)} rows")
    return int(any(row.worse for row in rows))


if __name__ == "__main__":
    sys.exit(main())
