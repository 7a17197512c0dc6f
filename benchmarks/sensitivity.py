"""Predicted against measured losses of random plans, by estimator: `python -m benchmarks.sensitivity --pack DIR`.

Every estimator predicts the loss of the same random plans (weights 3 to 8 bits, activations 4 to 8 bits) from
calibration samples; the plans are then run with fake quantisation on samples no estimator has seen.  Plans that were
measured once are kept (see `qcompile.pm.work`), so the table can be interrupted and extended.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.pack import load_pack
from benchmarks.report import table
from passes.analysis.check_prediction import CheckPrediction, random_plans, validity
from passes.analysis.correlation import spearman
from passes.analysis.predicted_loss import PredictedLoss
from qcompile import pipelines
from qcompile.capture import capture
from qcompile.ir import Array, Graph
from qcompile.pm.base import Batches, PassContext
from qcompile.pm.facts import LOSS, BitChoice
from qcompile.pm.manager import PassManager
from qcompile.pm.registry import find_pass
from qcompile.pm.spec import parse_pipeline
from qcompile.pm.work import WorkCache
from qcompile.target.model import Target

BITS, ACT_BITS = (3, 4, 5, 6, 7, 8), (4, 5, 6, 7, 8)
ESTIMATORS = tuple(name for name in pipelines.SENSITIVITIES if name not in ("hvp", "pairs"))
UNLIMITED = 1e9
"""10¹² multiply-accumulates: every held-out sample is run, whatever it costs."""


@dataclass(frozen=True)
class Row:
    """One estimator on one network.

    Attributes:
        estimator: key of `pipelines.SENSITIVITIES`.
        seconds: of its passes (those kept from an earlier run cost nothing).
        additive, additive_r2: rank and squared linear correlation of summed losses with measured ones.
        augmented, augmented_r2: with the terms between layers, where it has any.
        best: the lower the better: measured loss of the plans predicted best (a tenth of all) over that of those
            measured best.
    """

    estimator: str
    seconds: float
    additive: float
    additive_r2: float
    augmented: float | None
    augmented_r2: float | None
    best: float


def stream(data: Mapping[str, Array], first: int, last: int) -> Batches:
    """Samples `first` to `last` in batches, without labels."""

    def again() -> Iterator[dict[str, Array]]:
        for start in range(first, last, 32):
            yield {name: array[start : min(start + 32, last)] for name, array in data.items() if name != "labels"}

    return again


def prepare(options: argparse.Namespace) -> tuple[Graph, PassContext, list[Batches], int]:
    """The calibrated network with its candidates, the context, and two equal parts of held-out samples."""
    load = load_pack(options.pack)
    data = load.arrays(options.network, "calib", options.samples + options.held)
    total = len(next(iter(data.values())))
    fit = min(options.samples, total // 2)
    size = (total - fit) // 2
    parts = [stream(data, fit + i * size, fit + (i + 1) * size) for i in range(2)]
    ctx = PassContext(
        Target("none", "", "", weight_bits=BITS, act_bits=ACT_BITS), calibration=stream(data, 0, fit),
        holdout=parts[0], work=None if options.fresh else WorkCache(), seed=options.seed, progress=show,
    )  # fmt: skip
    names = (*pipelines.CANONICALIZE, *pipelines.CALIBRATE, "round-candidates")
    graph = capture(load.model(options.network))
    return PassManager([find_pass(name)() for name in names]).run(graph, ctx).graph, ctx, parts, size


def show(task: str, done: int, total: int) -> None:
    """Progress on standard error, where that is a terminal."""
    if sys.stderr.isatty():
        print(f"\r\033[K{task} {done}/{total}", end="", file=sys.stderr, flush=True)


def run(
    name: str, graph: Graph, ctx: PassContext, plans: Sequence[dict[str, BitChoice]], measured: Sequence[float]
) -> Row:
    """Predict all plans with one estimator."""
    specs = [spec for spec in pipelines.SENSITIVITIES[name] if spec != "round-candidates"]
    begun = time.perf_counter()
    found = PassManager(parse_pipeline(",".join(specs))).run(graph, ctx).graph
    seconds = time.perf_counter() - begun
    predicted = PredictedLoss(found)
    if LOSS not in found.notes:
        raise SystemExit(f"{name} predicts no losses")
    additive, augmented = [predicted.additive(p) for p in plans], [predicted.augmented(p) for p in plans]
    agreed = validity(additive, augmented, measured, 0)
    final = np.array(additive if augmented[0] is None else augmented, np.float64)
    tenth = max(1, len(plans) // 10)
    truth = np.array(measured)
    best = truth[np.argsort(final, kind="stable")[:tenth]].mean() / np.sort(truth)[:tenth].mean()
    return Row(
        name, seconds, agreed.additive_spearman, agreed.additive_r2, agreed.augmented_spearman, agreed.augmented_r2,
        float(best),
    )  # fmt: skip


def halves(
    graph: Graph, ctx: PassContext, plans: Sequence[dict[str, BitChoice]], parts: Sequence[Batches], size: int
) -> list[list[float]]:
    """Losses of the plans on each part of the held-out samples, all of them."""
    check = CheckPrediction(plans=len(plans), samples=size, teramacs=UNLIMITED)
    return [check.measured(graph, replace(ctx, holdout=part), plans)[0] for part in parts]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sensitivity", description=__doc__)
    parser.add_argument("--pack", type=Path, required=True, help="folder of the data pack")
    parser.add_argument("--network", default="resnet20_cifar10", help="name of a pack file")
    parser.add_argument("--plans", type=int, default=200, help="random plans that are measured")
    parser.add_argument("--samples", type=int, default=512, help="calibration samples")
    parser.add_argument("--held", type=int, default=1536, help="held-out samples plans are measured on")
    parser.add_argument("--estimators", default=",".join(ESTIMATORS), help="names by comma, or `all`")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fresh", action="store_true", help="keep and use nothing of other runs: for timing")
    parser.add_argument("--json", type=Path, help="write all figures to this file, after each estimator")
    options = parser.parse_args(arguments)
    names = list(pipelines.SENSITIVITIES) if options.estimators == "all" else options.estimators.split(",")
    graph, ctx, parts, size = prepare(options)
    plans = list(random_plans(graph, ctx, options.plans, least=3))
    first, second = halves(graph, ctx, plans, parts, size)
    measured = np.mean([first, second], axis=0)
    held, agreement = 2 * size, spearman(first, second)
    report = {
        "network": options.network, "plans": len(plans), "calibration": options.samples, "held": held,
        "halves_spearman": agreement, "median_loss": float(np.median(measured)),
    }  # fmt: skip
    rows = []
    for name in names:
        rows.append(run(name, graph, ctx, plans, measured))
        print(f"\r{rows[-1]}", file=sys.stderr, flush=True)
        if options.json is not None:
            content = {**report, "estimators": [asdict(row) for row in rows]}
            options.json.write_text(json.dumps(content, indent=1) + "\n")
    lines = [["estimator", "Spearman", "R²", "with pairs", "R²", "best tenth", "s"]]
    for r in rows:
        pair = (
            ["", ""]
            if r.augmented is None or r.augmented_r2 is None
            else [f"{r.augmented:.3f}", f"{r.augmented_r2:.3f}"]
        )
        lines.append(
            [r.estimator, f"{r.additive:.3f}", f"{r.additive_r2:.3f}", *pair, f"{r.best:.3f}", f"{r.seconds:.0f}"]
        )
    print(f"{options.network}: {len(plans)} random plans measured on {held} samples;", end=" ")
    print(f"their median loss is {np.median(measured):.3g}.")
    print(f"The two halves of these samples agree with rank correlation {agreement:.3f}.\n")
    print(table(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
