"""tune-scales: the scales and biases of all rounded layers, tuned together by what the network answers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from passes.analysis.calibrate_ranges import data_digest
from passes.analysis.effort import macs
from passes.analysis.layer_inputs import separate_layer_inputs
from passes.analysis.samples import first_samples
from passes.analysis.subjects import rounding_grids
from passes.structure import Structure
from qcompile.errors import PassContractError
from qcompile.exec.tensors import Tensor, fake_quantize
from qcompile.exec.torch_scales import ScaleSchedule, mean_loss, tune_scales
from qcompile.exec.torch_teacher import Teacher
from qcompile.ir import Array, Graph
from qcompile.pm.base import ON_FLOAT, Batches, Levels, Pass, PassContext, PassResult, Report
from qcompile.pm.facts import BITS, RANGES, ROUNDED, Rounded
from qcompile.pm.notes_json import notes_to_json
from qcompile.pm.work import digest, recalled

_PASSES_A_STEP = 3
"""Work of a step in forward passes: there and back, where either gradient costs as much as the way there."""


@dataclass(frozen=True)
class TuneScales(Pass):
    """Change every output channel's scale and bias so that the network's answers come closest to the float network's.

    Before:  notes ranges, bits and rounded        After:  note rounded, with the same integers

    `round-weights` looks at one layer at a time.  Where few bits change the answers, errors of many layers add up, and
    what they have in common can be taken back by two numbers for each channel, which cost nothing in integer code.
    Adam on the divergence of the outputs, without labels, gradients straight through the rounding of activations;
    pictures are mirrored in every second epoch.  Networks that lose next to nothing are left alone: the few samples
    that show a loss would be learnt by heart.

    Attributes:
        least: mean divergence of the rounded network on the first `fewest` samples, in nats, from which it pays.
        epochs: passes over the samples.
        samples: calibration samples, the first ones.
        fewest: samples below which scales fit those alone.
        teramacs: most multiply-accumulates, in 10¹²; a network for which they are too few is left as it is.
    """

    name: ClassVar[str] = "tune-scales"
    levels: ClassVar[Levels] = ON_FLOAT
    requires = (RANGES, BITS, ROUNDED)
    provides = (ROUNDED,)
    needs = ("calibration",)

    least: float = 0.02
    epochs: int = 4
    samples: int = 512
    fewest: int = 64
    teramacs: float = 1.2

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        if ctx.calibration is None:
            raise PassContractError("tune-scales needs calibration samples")
        table = graph.notes[ROUNDED]
        step = _PASSES_A_STEP * self.epochs * macs(graph) * 1e-12
        affordable = int(min(self.samples, self.teramacs / step if step > 0 else self.samples))
        if not table or affordable < self.fewest:
            reason = "no weights were rounded by samples" if not table else "it would take too long"
            return PassResult(graph, Report(facts={"left": reason}))
        kept = recalled(
            ctx.work,
            partial(self._key, graph, ctx, ctx.calibration),
            partial(self._tuned, graph, ctx, ctx.calibration, affordable),
        )
        before, after, count = (float(x) for x in kept["divergence"])
        facts = {"samples": int(count), "before": before, "after": after}
        if not after < before:
            reason = (
                "there are too few samples" if count < self.fewest else "it loses too little, or no less when tuned"
            )
            return PassResult(graph, Report(facts=facts | {"left": reason}))
        tuned = {
            layer: Rounded(given.bits, given.q, kept[f"scale {layer}"], kept[f"b {layer}"])
            for layer, given in table.items()
        }
        said = f"divergence from the float network {before:.3g} → {after:.3g} nats on {int(count)} calibration samples"
        return PassResult(graph.with_notes(graph.notes.with_table(ROUNDED, tuned)), Report(done=(said,), facts=facts))

    def _key(self, graph: Graph, ctx: PassContext, calibration: Batches) -> str:
        notes = notes_to_json(graph.notes, [RANGES, BITS])
        rounded = {layer: [r.q, r.scale, r.b] for layer, r in sorted(graph.notes[ROUNDED].items())}
        return digest(self.spec(), graph.content_hash, notes, rounded, ctx.seed, data_digest(graph, calibration))

    def _tuned(self, graph: Graph, ctx: PassContext, calibration: Batches, affordable: int) -> dict[str, Array]:
        """The divergence before and after, the number of samples, and what was found where there is anything."""
        structure = Structure(graph)
        view = separate_layer_inputs(graph, structure)
        grids = rounding_grids(structure, view.copies, graph.notes[RANGES], graph.notes[BITS])

        def quantize(value: str, x: Tensor) -> Tensor:
            return fake_quantize(x, grids[value]) if value in grids else x

        def teacher(samples: int) -> Teacher:
            batches = [batch.inputs for batch in first_samples(graph, calibration, samples, samples)]
            return Teacher(view.graph, batches, quantize)

        integers = {layer: (r.q, (r.scale, r.b)) for layer, r in graph.notes[ROUNDED].items()}
        few = teacher(self.fewest)
        before = mean_loss(few, integers)
        if few.count < self.fewest or before < self.least:
            return {"divergence": np.array([before, before, few.count])}
        everyone, progress = teacher(affordable), partial(ctx.progress, self.name)
        found = tune_scales(everyone, integers, ScaleSchedule(self.epochs), ctx.seed, progress)
        kept: dict[str, Array] = {"divergence": np.array([found.before, found.after, everyone.count])}
        if found.after < found.before:
            for layer, (scale, b) in found.layers.items():
                kept |= {f"scale {layer}": scale, f"b {layer}": b}
        return kept
