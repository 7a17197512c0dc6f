"""What looks on while a pipeline runs: timing, logging, dumps, and a check that passes keep the function.

None of it is part of the loop; see `qcompile.pm.manager.Instrument`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.errors import PassContractError, StorageError
from qcompile.ir import FLOAT, INT, Array, Graph, bits_of, int_range, storage
from qcompile.ir.text import to_text
from qcompile.pm.base import Close, Exact, Nothing, Pass, PassContext, Report
from qcompile.pm.notes_json import notes_to_json

Runner = Callable[[Graph, Mapping[str, Array]], Mapping[str, Array]]
"""Evaluates a graph: arrays by input name → arrays by output name."""


class Watcher:
    """Base of the instruments below: looks at nothing."""

    def before(self, step: int, pass_: Pass, graph: Graph, ctx: PassContext) -> None:
        return None

    def after(self, step: int, pass_: Pass, before: Graph, after: Graph, report: Report, ctx: PassContext) -> None:
        return None


@dataclass
class Timing(Watcher):
    """Seconds each pass took, checks of its promises included.

    Attributes:
        seconds: (pass name, seconds) in order.
    """

    seconds: list[tuple[str, float]] = field(default_factory=list)
    _start: float = 0.0

    def before(self, step: int, pass_: Pass, graph: Graph, ctx: PassContext) -> None:
        self._start = time.perf_counter()

    def after(self, step: int, pass_: Pass, before: Graph, after: Graph, report: Report, ctx: PassContext) -> None:
        self.seconds.append((pass_.name, time.perf_counter() - self._start))


@dataclass
class Logging(Watcher):
    """Says what each pass did (info) and what it refused and why (debug), in the log of the context."""

    def after(self, step: int, pass_: Pass, before: Graph, after: Graph, report: Report, ctx: PassContext) -> None:
        ctx.log.info("%s: %d nodes → %d, %d changes", pass_.name, len(before.nodes), len(after.nodes), len(report.done))
        for prefix, lines in (("", report.done), ("skipped ", report.refused)):
            for line in lines:
                ctx.log.debug("%s: %s%s", pass_.name, prefix, line)


@dataclass
class Dump(Watcher):
    """Writes the graph behind every pass: `00-input.qir`, `03-fold-batch-norm.qir`, with the report as
    comments.

    Notes that the pass made lie beside it, `04-calibrate-ranges.notes.json`.

    Attributes:
        directory: made where it does not exist.
    """

    directory: Path

    def before(self, step: int, pass_: Pass, graph: Graph, ctx: PassContext) -> None:
        if step == 1:
            self._write("00-input.qir", to_text(graph))

    def after(self, step: int, pass_: Pass, before: Graph, after: Graph, report: Report, ctx: PassContext) -> None:
        name = f"{step:02d}-{pass_.name}"
        lines = [f"# {line}\n" for line in _comments(report)]
        self._write(f"{name}.qir", to_text(after) + "".join(lines))
        if pass_.provides:
            made = notes_to_json(after.notes, pass_.provides)
            self._write(f"{name}.notes.json", json.dumps(made, indent=1, ensure_ascii=False) + "\n")

    def _write(self, name: str, text: str) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            (self.directory / name).write_text(text, encoding="utf-8")
        except OSError as error:
            raise StorageError(f"cannot write the dump {self.directory / name}: {error.strerror}") from error


def _comments(report: Report) -> list[str]:
    lines = [*(f"done: {line}" for line in report.done), *(f"refused: {line}" for line in report.refused)]
    lines += [f"{key}: {value}" for key, value in report.facts.items()]
    return [" ".join(line.splitlines()) for line in lines]


@dataclass
class KeepsFunction(Watcher):
    """Runs the graphs before and behind each pass on one sample and holds the pass to its `preserves`.

    `Close` is compared as max |Δ| ≤ rtol · max |y|, `Exact` bit for bit.  Passes that promise nothing, and
    those that change the level, are left out.

    Attributes:
        run_float: evaluates float graphs; without it they are not compared.
        run_int: evaluates integer graphs (`qcompile.semantics.interp.run`).
        samples: how many samples of the calibration data, or of random data, to compare.
    """

    run_float: Runner | None = None
    run_int: Runner | None = None
    samples: int = 2

    def after(self, step: int, pass_: Pass, before: Graph, after: Graph, report: Report, ctx: PassContext) -> None:
        runner = {FLOAT: self.run_float, INT: self.run_int}[after.level]
        if runner is None or before.level != after.level or before.content_hash == after.content_hash:
            return
        promise = pass_.preserves
        if isinstance(promise, Nothing):
            return
        inputs = sample_inputs(before, ctx, self.samples)
        old, new = runner(before, inputs), runner(after, inputs)
        rtol = promise.rtol if isinstance(promise, Close) else 0.0
        for name, expected in old.items():
            if name not in new:
                raise self._broken(pass_, f"the output {name!r} is gone")
            self._compare(pass_, name, np.asarray(expected), np.asarray(new[name]), rtol)

    def _compare(self, pass_: Pass, name: str, old: Array, new: Array, rtol: float) -> None:
        if old.shape != new.shape:
            raise self._broken(pass_, f"the output {name!r} has shape {new.shape}, not {old.shape}")
        if isinstance(pass_.preserves, Exact):
            if not np.array_equal(old, new):
                count = int(np.count_nonzero(old != new))
                raise self._broken(pass_, f"{count} of {old.size} elements of the output {name!r} differ")
            return
        error = float(np.max(np.abs(new.astype(np.float64) - old.astype(np.float64)), initial=0.0))
        limit = rtol * float(np.max(np.abs(old.astype(np.float64)), initial=0.0))
        # Written so that a NaN fails.
        if not error <= limit:
            raise self._broken(pass_, f"the output {name!r} moved by {error:.3g}, more than {limit:.3g}")

    @staticmethod
    def _broken(pass_: Pass, what: str) -> PassContractError:
        return PassContractError(
            f"pass {pass_.name} promises to keep the function ({pass_.preserves}), but {what}",
            hint=f"this is a defect of {type(pass_).__module__}; please tell its author",
        )


def sample_inputs(graph: Graph, ctx: PassContext, samples: int) -> dict[str, Array]:
    """Inputs to compare graphs on: calibration samples for float graphs, random ones where there are none."""
    if graph.level == FLOAT and ctx.calibration is not None:
        batch: dict[str, Any] = next(ctx.calibration(), {})
        if all(port.name in batch for port in graph.inputs):
            return {port.name: np.asarray(batch[port.name])[:samples] for port in graph.inputs}
    rng = ctx.rng("keeps-function")
    found: dict[str, Array] = {}
    for port in graph.inputs:
        shape = (samples, *port.type.sample)
        if port.type.dtype[0] == "f":
            found[port.name] = rng.standard_normal(shape).astype(storage(port.type.dtype))
        else:
            lo, hi = int_range(port.type.dtype) if bits_of(port.type.dtype) <= 8 else (-(1 << 15), 1 << 15)
            found[port.name] = rng.integers(lo, hi, shape, endpoint=True).astype(storage(port.type.dtype))
    return found
