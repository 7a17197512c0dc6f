"""measure-pair-loss: round two things at a time and see what they cost beyond what each costs alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

import numpy as np

from passes.analysis.subjects import Choice, choices_of, with_pairs
from passes.analysis.summed import Samples
from passes.analysis.sweep import sweep
from passes.structure import Structure
from qcompile.errors import UsageError
from qcompile.ir import Graph
from qcompile.pm.base import ON_FLOAT, Levels, Pass, PassContext, PassResult, Report
from qcompile.pm.facts import INTERACTIONS, RANGES, SENSITIVITY


@dataclass(frozen=True)
class MeasurePairLoss(Pass):
    """Measure L(i, j) − L(i) − L(j) for pairs of choices (the float network has loss 0), as CLADO does.

    All pairs would take (n·k)²/2 runs.  A budget of runs goes to the subjects that are closest in execution order
    first: what a layer reads and its weights, then neighbours, then layers of one block, and so on; of two subjects
    every pair of widths is measured.  Pairs left over keep the term of an earlier pass, or count as 0.

    Attributes:
        pairs: most pairs of choices that are run; 0 runs all.
        samples: calibration samples, the first ones.
        batch: samples run at a time.
    """

    name: ClassVar[str] = "measure-pair-loss"
    levels: ClassVar[Levels] = ON_FLOAT
    requires = (RANGES,)
    provides = (SENSITIVITY, INTERACTIONS)
    needs = ("calibration",)

    pairs: int = 4096
    samples: int = 64
    batch: int = 16

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        if self.pairs < 0:
            raise UsageError(f"pairs must not be negative, not {self.pairs}")
        structure = Structure(graph)
        choices = choices_of(structure, ctx.target.weight_bits, ctx.target.act_bits)
        chosen = chosen_pairs(structure, choices, self.pairs)
        sets = [[choice] for choice in choices] + [[choices[i], choices[j]] for i, j in chosen]
        swept = sweep(graph, ctx, sets, Samples(self.name, self.samples, self.batch))
        n = len(choices)
        matrix = np.zeros((n, n))
        before = graph.notes.get(INTERACTIONS).get("")
        if before is not None and (before.subjects, before.bits) == (
            tuple(c.subject for c in choices),
            tuple(c.bits for c in choices),
        ):
            matrix = before.matrix.copy()
        for (i, j), both in zip(chosen, swept.loss[n:], strict=True):
            matrix[i, j] = matrix[j, i] = both - swept.loss[i] - swept.loss[j]
        loss, error = swept.loss[:n], swept.loss_error[:n]
        notes = with_pairs(graph.notes, choices, loss, error, matrix, self.name, diagonal=True)
        facts = {"samples": swept.samples, "choices": n, "pairs": len(chosen)}
        return PassResult(graph.with_notes(notes), Report(facts=facts))


def chosen_pairs(structure: Structure, choices: Sequence[Choice], budget: int) -> list[tuple[int, int]]:
    """Indices of the pairs to run, all of them where the budget is 0; whole pairs of subjects, the closest first."""
    rows: dict[str, list[int]] = {}
    for i, choice in enumerate(choices):
        rows.setdefault(choice.subject, []).append(i)
    found: list[tuple[int, int]] = []
    for one, other in closest_first(structure, list(rows)):
        more = [(i, j) for i in rows[one] for j in rows[other]]
        if budget and len(found) + len(more) > budget:
            break
        found += more
    return found


def closest_first(structure: Structure, subjects: Sequence[str]) -> Iterator[tuple[str, str]]:
    """All pairs of subjects by the distance of the layers they act on, in execution order."""
    at = {layer: float(i) for i, layer in enumerate(structure.layers)}
    tied = structure.tied()
    # A grid group acts on the first layer that reads it, just before that layer's weights do.
    place = {s: at[s[2:]] if s.startswith("w:") else at[tied[s[2:]][0]] - 0.5 for s in subjects}
    yield from sorted(combinations(subjects, 2), key=lambda pair: abs(place[pair[0]] - place[pair[1]]))
