"""How well latency is predicted: `python -m benchmarks.prediction`.

For each network, plans of random bits are built and timed end to end, and compared with the sum of their kernels'
costs, before and after the correction by uniform 8 bits that `--latency` works with.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.conditions import conditions
from benchmarks.prepare import Preparation
from benchmarks.report import table

NETWORKS = ("resnet20_cifar10", "mobilenetv2", "resnet18")
UNIFORM = "uniform w8a8"


@dataclass(frozen=True)
class Prediction:
    """One plan of a network; seconds, all at the clock of the cost cache but for `raw`.

    Attributes:
        network, plan: names.
        predicted: sum of the costs of the plan's kernels, as the integer program sees it.
        correction: measured over predicted seconds of uniform 8 bits.
        measured: end to end.
        raw: end to end at the clock of the moment.
    """

    network: str
    plan: str
    predicted: float
    correction: float
    measured: float
    raw: float

    @property
    def errors(self) -> tuple[float, float]:
        """Relative error before and after correction."""
        return self.predicted / self.measured - 1, self.predicted * self.correction / self.measured - 1


def random_plans(layers: Sequence[str], offered: Any, count: int, seed: int) -> dict[str, dict[str, tuple[int, int]]]:
    """Uniform plans at the widest and the narrowest bits, and `count` random ones, by name.

    Args:
        offered: the target.
    """
    rng = np.random.default_rng(seed)
    low = (min(offered.weight_bits), min(offered.act_bits))
    found = {UNIFORM: dict.fromkeys(layers, (8, 8)), f"uniform w{low[0]}a{low[1]}": dict.fromkeys(layers, low)}
    for index in range(count):
        # Activations uniform: layers that read the same values must agree, and a plan at random would not.
        act = int(rng.choice(offered.act_bits))
        share = (index + 1) / (count + 1)
        widths = [low[0] if rng.random() < share else int(rng.choice(offered.weight_bits)) for _ in layers]
        found[f"random {index}, a{act}"] = {layer: (w, act) for layer, w in zip(layers, widths, strict=True)}
    return found


def predict(network: str, folder: Path, target: str, threads: int, count: int, seed: int) -> list[Prediction]:
    """Build and time the plans of one network."""
    from qcompile.capture import capture
    from qcompile.compiler import Compiler
    from qcompile.data import load_batches
    from qcompile.pm.facts import COSTS
    from qcompile.pm.registry import find_backend, find_target
    from qcompile.target.cost import CostCache
    from qcompile.timer import Timer

    machine = find_target(target)
    graph = capture(folder / "source.onnx", example=None, shapes=None)
    data = load_batches(folder / "calib.npz", graph.inputs, limit=8)
    costs = CostCache()
    compiler = Compiler(
        graph, machine, find_backend(machine), data, data, costs, threads=threads, rounding="nearest"
    )  # fmt: skip
    compiler.prepare(analyse=False)
    compiler.graph, _ = compiler.run_passes(compiler.graph, [("estimate-cost", {"threads": threads})])
    layers = [layer for layer in compiler.graph.notes[COSTS] if layer]
    timer = Timer(compiler)
    correction = timer.correction()
    found = []
    for name, plan in random_plans(layers, machine, count, seed).items():
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "plan.json"
            path.write_text(json.dumps({"bits": plan}))
            planned = compiler.from_file(path)
            program = timer.settled(compiler.lower())
            compiler.backend.build(program, Path(scratch) / "library")
            executable = compiler.backend.load(Path(scratch) / "library", program.graph)
            measured, raw = timer.time(program, executable).median, executable.measure(threads, 20).median
        predicted = compiler.predicted_seconds(planned.bits)
        assert predicted is not None  # costs were estimated
        found.append(Prediction(network, name, predicted, correction, measured, raw))
        print(f"{network} {name}: {predicted * 1e3:.3f} {measured * 1e3:.3f}", file=sys.stderr, flush=True)
    return found


def summary(rows: Sequence[Prediction]) -> dict[str, float]:
    """Mean absolute relative errors over all plans but those the correction was taken from."""
    counted = [row.errors for row in rows if row.plan != UNIFORM]
    before, after = np.abs(np.array(counted)).mean(axis=0) if counted else (0.0, 0.0)
    return {"plans": len(counted), "before": float(before), "after": float(after)}


def format_predictions(rows: Sequence[Prediction]) -> str:
    """A table of the plans and a line with the mean errors."""
    lines: list[tuple[str, ...]] = [
        ("network", "plan", "predicted ms", "corrected ms", "measured ms", "error", "corrected", "ms by the clock")
    ]
    for row in rows:
        before, after = (f"{100 * error:+.1f}" for error in row.errors)
        times = (row.predicted, row.predicted * row.correction, row.measured)
        shown = [f"{1e3 * seconds:.3f}" for seconds in times]
        lines.append((row.network, row.plan, *shown, before, after, f"{1e3 * row.raw:.3f}"))
    means = summary(rows)
    return (
        f"{table(lines)}\n\nmean absolute error over {means['plans']} plans: {100 * means['before']:.1f} %, "
        f"corrected {100 * means['after']:.1f} %"
    )


def to_json(machine: Mapping[str, Any], rows: Sequence[Prediction]) -> dict[str, Any]:
    """The file `--json` writes."""
    return {"conditions": dict(machine), "summary": summary(rows), "plans": [asdict(row) for row in rows]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Predict, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prediction", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--networks", default=",".join(NETWORKS), help="names, separated by commas")
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--plans", type=int, default=4, help="random plans of each network")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pack", type=Path, help="folder of the data pack")
    parser.add_argument("--work", type=Path, default=Path("build/bench"), help="folder for models")
    parser.add_argument("--json", type=Path, help="file for all figures and their conditions")
    options = parser.parse_args(arguments)
    machine, rows = conditions(), []
    for network in options.networks.split(","):
        folder = options.work / network
        if not (folder / "source.onnx").exists() or not (folder / "calib.npz").exists():
            folder.mkdir(parents=True, exist_ok=True)
            Preparation(network, folder, options.pack, sys.executable).write_source()
        rows += predict(network, folder, options.target, options.threads, options.plans, options.seed)
        if options.json is not None:
            options.json.write_text(json.dumps(to_json(machine, rows), indent=1))
    print(format_predictions(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
