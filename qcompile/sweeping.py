"""The whole front of one network on one target: plans over a row of budgets, as tables and a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qcompile import planning, plotting
from qcompile.artifact.canonical import canonical_json
from qcompile.artifact.files import write_file
from qcompile.errors import InfeasibleError, StorageError, UsageError
from qcompile.job import Job
from qcompile.pm.facts import COSTS
from qcompile.timer import Timer
from qcompile.units import parse_bytes, parse_latency, parse_span

COLUMNS = (
    "budget", "plan", "bytes", "predicted_ms", "predicted_loss", "bound", "gap", "held_out_loss", "agreement", "metric",
    "value", "drop", "drop_below", "samples",
)  # fmt: skip


@dataclass
class Sweep:
    """What `sweep` returns; `to_json` is what `qcompile sweep --json` prints and front.json holds.

    Attributes:
        model, target: names.
        axis: "memory" (budgets in bytes) or "latency" (budgets in seconds).
        rows: one dict for each budget, see `qcompile.planning.sweep_front`.
        files: written ones.
        warnings: what the user should know.
    """

    model: str
    target: str
    axis: str
    sensitivity: str
    rows: list[dict[str, Any]]
    files: list[Path] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "model": self.model, "target": self.target, "axis": self.axis, "sensitivity": self.sensitivity,
            "front": self.rows, "files": [str(path) for path in self.files], "warnings": self.warnings,
        }  # fmt: skip

    def to_csv(self) -> str:
        """One line for each budget, without the bits."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for row in self.rows:
            writer.writerow({**row, **row["accuracy"]})
        return text.getvalue()

    def write(self, directory: Path) -> None:
        """front.json, front.csv and, where matplotlib is installed, front.svg.  Raises StorageError."""
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot make the folder {directory}: {error.strerror}") from None
        self.files = [directory / name for name in ("front.json", "front.csv")]
        if plotting.can_plot():
            self.files.append(directory / "front.svg")
            plotting.plot_front(self.files[-1], self.axis, self.rows, f"{self.model} on {self.target}")
        else:
            self.warnings.append("no picture: it needs matplotlib (pip install 'qcompile[plot]')")
        write_file(directory / "front.csv", self.to_csv().encode())
        write_file(directory / "front.json", canonical_json(self.to_json()).encode())


def run_sweep(job: Job, span: str | None, points: int, axis: str) -> Sweep:
    """Analyse once, then plan, choose and judge for every budget.

    Args:
        job: model, target, data and the limits that hold everywhere; its output folder gets the files.
        span: budgets as `2ms:10ms:0.5ms`; None takes evenly spaced ones from the cheapest plan to the most precise.
        points: budgets where `span` states no step, at least 2.
        axis: "memory" or "latency".

    Raises:
        InfeasibleError: no plan keeps any of the budgets.
    """
    if points < 2:
        raise UsageError(f"a front needs at least 2 points, not {points}")
    parse: Callable[[str], float] = parse_bytes if axis == "memory" else parse_latency
    values: Sequence[float] | None = None if span is None else parse_span(span, parse, points)
    job.refuse_contradictions()
    source, compiler, _ = job.open(floor=True)
    with job.stage("analyse"):
        compiler.prepare(analyse=True)
    scale = Timer(compiler, job.stage).correction() if compiler.costs is not None else 1.0
    data = {"fixed_seconds": compiler.graph.notes[COSTS][""].seconds[8, 8], "latency_scale": scale}
    with job.stage("sweep"):
        if values is None:
            values = _whole(compiler, job, axis, points, data)
        rows = planning.sweep_front(compiler, axis, values, job.budgets, compiler.judge(), scale)
    if not rows:
        raise InfeasibleError(f"no plan keeps any {axis} in {span}", hint="leave the range out to see what is possible")
    found = Sweep(source.name, compiler.target.name, axis, compiler.sensitivity, rows, warnings=job.warnings)
    if job.out is not None:
        found.write(job.out)
    return found


def _whole(compiler: Any, job: Job, axis: str, points: int, data: dict[str, Any]) -> Sequence[float]:
    """Evenly spaced budgets between the cheapest plan and the one of least predicted loss."""
    options = {"axis": axis, "points": 2, "latency": job.budgets.latency, "memory": job.budgets.memory}
    compiler.run_passes(compiler.graph, [("plan-front", options)], data=data)
    costs = [row["predicted"][axis] for row in compiler.reports["plan-front"].facts["front"]]
    low, high = min(costs), max(costs)
    # A hair more than the exact sums, which lose their last digits as floats.
    return [(low + (high - low) * i / (points - 1)) * (1 + 1e-9) for i in range(points)]
