"""bisect-plan: the cheapest of a row of plans whose measured accuracy keeps a floor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from passes.plan.confidence import Drop
from passes.plan.judge import Judge
from qcompile.errors import AccuracyError, PassContractError
from qcompile.ir import Graph
from qcompile.pm.base import ON_FLOAT, Levels, Pass, PassContext, PassResult, Report
from qcompile.pm.facts import BITS, RANGES, BitChoice
from qcompile.units import format_bits, parse_fraction

Plan = Mapping[str, BitChoice]

EXTRA = 3
"""Plans beyond the bisected one that are tried, because accuracy need not fall from plan to plan."""


@dataclass(frozen=True)
class BisectPlan(Pass):
    """Find the cheapest plan that loses at most `max_drop` of accuracy on samples nothing else looks at.

    `ctx.data["chain"]` holds n plans, the most precise first and the cheapest last.  Bisection finds a prefix that
    keeps the floor in ⌈log2(n + 1)⌉ evaluations, and up to three cheaper plans are tried behind it ("Augmenting
    Hessians with Inter-Layer Dependencies" searches precisions in this way).  The metric is top-1 where the samples
    have labels, else agreement with the float network; both are paired with the float network's answers.  Further
    inputs: `judge`, a `passes.plan.judge.Judge` (made of the held-out samples where it is missing), and `refused`,
    plans that are known to fail.

    Attributes:
        max_drop: fraction of all samples, such as 0.005; what is measured has to keep it.
    """

    name: ClassVar[str] = "bisect-plan"
    levels: ClassVar[Levels] = ON_FLOAT
    requires = (RANGES,)
    provides = (BITS,)
    needs = ("holdout",)

    max_drop: float = field(default=0.01, metadata={"parse": parse_fraction})

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        """Raises AccuracyError where even the most precise plan loses more."""
        chain: Sequence[Plan] = ctx.data.get("chain", ())
        if not chain or ctx.holdout is None:
            raise PassContractError("bisect-plan needs a chain of plans and held-out samples")
        judge: Judge = ctx.data.get("judge") or Judge(graph, ctx.holdout, ctx.labels)
        refused: Sequence[Plan] = ctx.data.get("refused", ())
        begun = judge.evaluations
        known: dict[int, Drop] = {}

        def keeps(index: int) -> bool:
            if any(dict(chain[index]) == dict(plan) for plan in refused):
                return False
            if index not in known:
                ctx.progress(self.name, len(known), len(chain).bit_length() + EXTRA)
                known[index] = judge.drop(chain[index])
            return known[index].drop <= self.max_drop + 1e-12

        found = last_kept(len(chain), keeps)
        if found is None:
            raise self._failure(chain[0], known.get(0))
        facts = {
            "chosen": found,
            "plans": len(chain),
            "evaluations": judge.evaluations - begun,
            "accuracy": {**known[found].to_json(), "max_drop": self.max_drop},
            "measured": {index: drop.to_json() for index, drop in sorted(known.items())},
        }
        done = f"plan {found} of {len(chain)} loses {100 * known[found].drop:.3g} % on {known[found].samples} samples"
        notes = graph.notes.with_table(BITS, chain[found])
        return PassResult(graph.with_notes(notes), Report(done=(done,), facts=facts))

    def _failure(self, plan: Plan, drop: Drop | None) -> AccuracyError:
        pairs = {(bits.w, bits.a) for bits in plan.values()}
        which = format_bits(next(iter(pairs))) if len(pairs) == 1 else "the most precise plan within the budgets"
        if drop is None:
            return AccuracyError(
                f"no plan keeps the accuracy: built, even {which} loses more than {100 * self.max_drop:.3g} %",
                hint="allow a larger --max-drop",
            )
        return AccuracyError(
            f"even {which} loses {100 * drop.drop:.3g} % of {drop.metric} on {drop.samples} held-out samples, "
            f"more than the {100 * self.max_drop:.3g} % allowed",
            hint="allow a larger --max-drop or larger budgets, or give more calibration samples",
        )


def last_kept(count: int, keeps: Callable[[int], bool]) -> int | None:
    """The largest index that keeps, if the first ones do and the later ones do not; None where none does.

    At most ⌈log2(count + 1)⌉ indices are asked, and EXTRA ones behind the result, of which the last that keeps wins.
    """
    low, high = -1, count
    asked: set[int] = set()
    while high - low > 1:
        middle = (low + high) // 2
        asked.add(middle)
        low, high = (middle, high) if keeps(middle) else (low, middle)
    further = [index for index in range(low + 1, count) if index not in asked][:EXTRA]
    beyond = [index for index in further if keeps(index)]
    best = max([low, *beyond])
    return None if best < 0 else best
