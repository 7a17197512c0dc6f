"""check-prediction: are predicted losses worth believing?  Random plans say so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar

import numpy as np

from passes.analysis.correlation import pearson, spearman
from passes.analysis.effort import affordable_samples
from passes.analysis.predicted_loss import PredictedLoss
from passes.analysis.samples import first_samples
from passes.analysis.summed import rounding_digest
from passes.plan.simulate import Simulator
from passes.structure import Structure
from qcompile.errors import PassContractError, UsageError
from qcompile.ir import Array, Graph
from qcompile.pm.base import ON_FLOAT, Levels, Pass, PassContext, PassResult, Report
from qcompile.pm.facts import LOSS, RANGES, VALIDITY, BitChoice, Validity
from qcompile.pm.work import digest

_LEAST = 3
"""Plans below which a correlation says nothing."""


@dataclass(frozen=True)
class CheckPrediction(Pass):
    """Draw random plans, measure them on held-out samples, and compare with what was predicted for them.

    Bits are drawn evenly, each layer's weights and each grid group's values on their own, from what the target offers.
    Measured plans are kept, so that an interrupted run resumes.

    Attributes:
        plans: how many.
        samples: most held-out samples, the first ones.
        teramacs: most multiply-accumulates of all plans, in 10¹²; large networks are run on fewer samples.
        least: fewest weight bits drawn: below it losses saturate, and such plans are of no use to anybody.
        batch: samples run at a time.
    """

    name: ClassVar[str] = "check-prediction"
    levels: ClassVar[Levels] = ON_FLOAT
    requires = (RANGES, LOSS)
    provides = (VALIDITY,)
    needs = ("holdout",)

    plans: int = 24
    samples: int = 256
    teramacs: float = 1.0
    least: int = 3
    batch: int = 32

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        if self.plans < _LEAST:
            raise UsageError(f"at least {_LEAST} plans are needed, not {self.plans}")
        plans = list(random_plans(graph, ctx, self.plans, self.least))
        measured, samples = self.measured(graph, ctx, plans)
        predicted = PredictedLoss(graph)
        found = validity(
            [predicted.additive(p) for p in plans], [predicted.augmented(p) for p in plans], measured, samples
        )
        report = Report(
            done=(
                f"predicted and measured losses of {len(plans)} random plans: rank correlation {found.spearman:.3f}",
            ),
            facts=asdict(found),
        )
        return PassResult(graph.with_notes(graph.notes.with_table(VALIDITY, {"": found})), report)

    def measured(
        self, graph: Graph, ctx: PassContext, plans: Sequence[dict[str, BitChoice]]
    ) -> tuple[list[float], int]:
        """The loss of each plan, and on how many samples."""
        if ctx.holdout is None:
            raise PassContractError("check-prediction needs held-out samples")
        samples = min(self.samples, affordable_samples(graph, len(plans), self.teramacs))
        batches = list(first_samples(graph, ctx.holdout, samples, self.batch))
        named = [[(layer, bits.w, bits.a) for layer, bits in plan.items()] for plan in plans]
        key = digest("plans", self.batch, [b.digest for b in batches], named, rounding_digest(graph))
        kept = None if ctx.work is None else ctx.work.get(key)
        losses: list[float] = [] if kept is None else kept["loss"].tolist()
        if len(losses) < len(plans):
            simulator = Simulator(graph, graph.notes[RANGES], [batch.inputs for batch in batches])
            for plan in plans[len(losses) :]:
                ctx.progress(self.name, len(losses), len(plans))
                losses.append(simulator.loss(plan))
                if ctx.work is not None:
                    found: dict[str, Array] = {"loss": np.array(losses)}
                    ctx.work.put(key, found)
        return losses, sum(map(len, batches))


def random_plans(graph: Graph, ctx: PassContext, count: int, least: int) -> Iterator[dict[str, BitChoice]]:
    """Plans of evenly drawn bits; the same for the same network, target and seed."""
    structure = Structure(graph)
    rng = ctx.rng("check-prediction")
    weights = [bits for bits in ctx.target.weight_bits if bits >= least] or list(ctx.target.weight_bits)
    for _ in range(count):
        a = {group: int(rng.choice(ctx.target.act_bits)) for group in structure.tied()}
        yield {k: BitChoice(int(rng.choice(weights)), a[structure.layer_group(k)]) for k in structure.layers}


def validity(
    additive: Sequence[float], augmented: Sequence[float | None], measured: Sequence[float], samples: int
) -> Validity:
    """Agreement of predictions with measurements."""
    full = [value for value in augmented if value is not None]
    known = len(full) == len(measured)
    rho = spearman(full if known else additive, measured)
    return Validity(
        len(measured),
        samples,
        spearman(additive, measured),
        pearson(additive, measured) ** 2,
        spearman(full, measured) if known else None,
        pearson(full, measured) ** 2 if known else None,
        (1 - rho**2) / (len(measured) - 1) ** 0.5,
    )
