"""select-plan: the planner's candidates, measured; the best one wins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import ClassVar

import numpy as np
from scipy.stats import wilcoxon

from passes.analysis.calibrate_ranges import data_digest
from passes.analysis.summed import rounding_digest
from passes.plan.simulate import Measurement, Simulator
from passes.structure import Structure
from qcompile.errors import PassContractError
from qcompile.ir import Array, Graph
from qcompile.pm.base import ON_FLOAT, Levels, Pass, PassContext, PassResult, Report
from qcompile.pm.facts import BITS, RANGES, VALIDITY, BitChoice
from qcompile.pm.work import digest, recalled

Plan = Mapping[str, BitChoice]

SURE = 0.05
"""Probability, at most, of such a measured difference between two plans that are equally good."""
CLEARLY = 0.72
"""Share of another plan's predicted loss below which a prediction is sure that a plan is better: ratios of predicted
losses mostly lie within 20 % of measured ones (docs/plans.md), and this is exp(−1.645 · 0.2)."""
TRUSTED = 0.5
"""Rank correlation of predicted and measured losses (`check-prediction`) below which predictions have no say: 24 plans
whose losses have nothing to do with each other reach it once in a hundred times.  Not nearer to 1, because losses
measured on few samples order plans worse than good predictions do where the network is sure of its answers: 0.7 for
ResNet-20 on 64 images, whose predictions reach 0.97 on 1,536 (docs/plans.md)."""


@dataclass(frozen=True)
class SelectPlan(Pass):
    """Measure each candidate plan on held-out samples and note the one with the smallest loss.

    A predicted loss orders most plans rightly, but it has no last word: the solver's plan, its runner-ups and
    the uniform plans that keep the budgets (`ctx.data["candidates"]`, cheapest first) are run with fake
    quantisation on samples no analysis has seen, with the weights `round-candidates` has noted.  Of equal losses the
    first, so the cheaper, wins.  The best of the uniform plans (`ctx.data["uniform"]`) yields only to one that is
    surely better (see `choose`): of two plans about as good the one that few samples happen to favour is as often the
    worse one, and where an estimate of many numbers is not better than a plain rule the rule is to be trusted.
    `ctx.data["predicted"]` holds the candidates' predicted losses, if there are any.
    `ctx.data["measured"]`, a dict the pass adds to, keeps figures between runs.
    """

    name: ClassVar[str] = "select-plan"
    levels: ClassVar[Levels] = ON_FLOAT
    requires = (RANGES,)
    provides = (BITS,)
    needs = ("holdout",)

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        candidates: Sequence[Plan] = ctx.data.get("candidates", ())
        if not candidates or ctx.holdout is None:
            raise PassContractError("select-plan needs candidate plans and held-out samples")
        holdout, layers = ctx.holdout, set(Structure(graph).layers)
        for plan in candidates:
            if set(plan) != layers:
                odd = sorted(set(plan) ^ layers)
                raise PassContractError(f"a candidate plan does not cover exactly the layers: {', '.join(odd)}")
        known: dict[tuple[tuple[str, int, int], ...], Measurement] = ctx.data.get("measured", {})
        keys = [tuple((layer, plan[layer].w, plan[layer].a) for layer in sorted(plan)) for plan in candidates]
        facts = cache(lambda: digest(data_digest(graph, holdout), rounding_digest(graph)))
        simulator = cache(lambda: Simulator(graph, graph.notes[RANGES], holdout()))

        def name_of(key: tuple[tuple[str, int, int], ...]) -> str:
            return digest("plan", key, facts())

        def measure(plan: Plan) -> dict[str, Array]:
            found = simulator().measure(plan)
            return {"loss": np.array(found.loss), "agreement": np.array(found.agreement), "each": found.each}

        for done, (key, plan) in enumerate(zip(keys, candidates, strict=True)):
            ctx.progress(self.name, done, len(candidates))
            if key not in known:
                kept = recalled(ctx.work, partial(name_of, key), partial(measure, plan))
                known[key] = Measurement(float(kept["loss"]), float(kept["agreement"]), kept["each"])
        measured = [known[key] for key in keys]
        uniform = [dict(plan) for plan in ctx.data.get("uniform", ())]
        plain = [i for i, plan in enumerate(candidates) if dict(plan) in uniform]
        validity = graph.notes.get(VALIDITY).get("")
        predicted = ctx.data.get("predicted") if validity is not None and validity.spearman >= TRUSTED else None
        chosen = choose(measured, plain, predicted)
        table = [{"loss": found.loss, "agreement": found.agreement} for found in measured]
        said = [f"candidate {chosen} of {len(candidates)} loses {measured[chosen].loss:.3g} on held-out data"]
        if (least := min(found.loss for found in measured)) < measured[chosen].loss:
            said.append(f"another one's {least:.3g} is not surely less")
        report = Report(done=tuple(said), facts={"chosen": chosen, "measured": table})
        return PassResult(graph.with_notes(graph.notes.with_table(BITS, candidates[chosen])), report)


def choose(measured: Sequence[Measurement], holders: Sequence[int], predicted: Sequence[float] | None = None) -> int:
    """Index of the plan with the least loss, or of the best of some plans where that one is not surely worse.

    A plan is surely better where its mean loss is less and either says so with confidence: the measurement (Wilcoxon's
    signed-rank test over samples) or the prediction (`CLEARLY`).  Ranks, because a network that is sure of its answers
    loses on few samples: a difference of mean losses, or of their roots, hangs on these whatever the plans are.

    Args:
        measured: of all plans, on the same samples.
        holders: indices of those that yield only to a surely better one.
        predicted: losses of all plans, where these can be trusted.
    """
    best = min(range(len(measured)), key=lambda i: measured[i].loss)  # min keeps the first of equals
    if not holders:
        return best
    plain = min(holders, key=lambda i: measured[i].loss)
    if predicted is not None and predicted[best] <= CLEARLY * predicted[plain]:
        return best
    gains = measured[plain].each - measured[best].each
    return best if not gains.any() or float(wilcoxon(gains, alternative="greater").pvalue) <= SURE else plain
