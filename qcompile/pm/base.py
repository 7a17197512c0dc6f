"""What a pass is: a frozen dataclass that says what it needs, provides, changes and preserves.

Its fields are its options: `solve-bits{gap=0.0,seconds=60}` on the command line sets the fields of class SolveBits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from qcompile.ir import FLOAT, INT, Array, Aspect, Graph, NoteKey
from qcompile.target.model import Target

if TYPE_CHECKING:
    from qcompile.pm.work import WorkCache
    from qcompile.target.backend import Backend
    from qcompile.target.cost import CostCache
    from qcompile.target.program import Program


@dataclass(frozen=True, slots=True)
class Levels:
    """The level a pass takes and the one it returns."""

    before: str
    after: str


ON_FLOAT = Levels(FLOAT, FLOAT)
ON_INT = Levels(INT, INT)
FLOAT_TO_INT = Levels(FLOAT, INT)


@dataclass(frozen=True, slots=True)
class Close:
    """The pass keeps the function up to rounding of the floats: max |Δ| ≤ rtol · max |y|."""

    rtol: float = 1e-3


@dataclass(frozen=True, slots=True)
class Exact:
    """The pass keeps every output bit."""


@dataclass(frozen=True, slots=True)
class Nothing:
    """The pass may change the function, and says why."""

    reason: str


Preserves = Close | Exact | Nothing


@dataclass(frozen=True, slots=True)
class Report:
    """What a pass did, and which rewrites it refused and why; both end up in `--dump` and the log."""

    done: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PassResult:
    """The new graph, the report, and for lowering passes the program."""

    graph: Graph
    report: Report = field(default_factory=Report)
    program: Program | None = None


Batches = Callable[[], Iterator[dict[str, Array]]]
"""Call it to stream the calibration data again: dicts of arrays by input name, with at most `batch` samples."""


def _silent(task: str, done: int, total: int) -> None:
    return None


@dataclass(frozen=True)
class PassContext:
    """What a pass may know beside the graph; there are no globals and no state between runs.

    Attributes:
        target: the machine, as data.
        backend: its code generator, or None where nothing is to be built.
        calibration: streams the calibration samples, float32 arrays by input name (the part used to fit).
        holdout: a part of the calibration data that is never used to fit, only to choose among plans.
        labels: whether the batches hold `labels`.
        costs: the cache of measured kernel costs, or None.
        work: finished pieces of long analyses, or None where nothing is kept between runs.
        program: the lowered program, once a pass has made one.
        data: further inputs by name (budgets, pins), see `qcompile.pipelines`.
        progress: called as progress(task, done, total).
    """

    target: Target
    backend: Backend | None = None
    calibration: Batches | None = None
    holdout: Batches | None = None
    labels: bool = False
    costs: CostCache | None = None
    work: WorkCache | None = None
    program: Program | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    progress: Callable[[str, int, int], None] = _silent
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("qcompile"))

    def rng(self, name: str) -> np.random.Generator:
        """A generator for one purpose: independent of every other and the same in every run."""
        return np.random.default_rng([self.seed, *name.encode()])


@dataclass(frozen=True)
class Pass:
    """Base of all passes; one class, one file, one kebab-case name (a test holds the three together).

    Class attributes:
        name: unique; `FoldBatchNorm` in fold_batch_norm.py is `fold-batch-norm`.
        levels: which level it takes and returns.
        requires: notes that must be there.
        provides: notes it adds.
        changes: aspects it may change; notes that depend on them are dropped by the manager.
        preserves: what it promises about the function.
        needs: names of context fields that must be set ("calibration", "backend", "costs", "program").
    """

    name: ClassVar[str]
    levels: ClassVar[Levels]
    requires: ClassVar[Sequence[NoteKey[Any]]] = ()
    provides: ClassVar[Sequence[NoteKey[Any]]] = ()
    changes: ClassVar[Aspect] = Aspect.NOTHING
    preserves: ClassVar[Preserves] = Exact()
    needs: ClassVar[Sequence[str]] = ()

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        raise NotImplementedError

    def spec(self) -> str:
        """The pass as `--passes` writes it; options at their default are left out."""
        options = [f"{f.name}={getattr(self, f.name)}" for f in fields(self) if getattr(self, f.name) != f.default]
        return f"{self.name}{{{','.join(options)}}}" if options else self.name
