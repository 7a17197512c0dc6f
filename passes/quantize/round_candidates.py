"""round-candidates: about what every layer's weights will be at every width, for the analyses to look at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from passes.analysis.samples import first_samples
from passes.quantize.correct_bias import corrected_bias
from passes.quantize.gptq import (
    MANY,
    Factor,
    Float,
    best_of,
    best_scale,
    damped,
    descend,
    factorised,
    unclipped_scale,
    working,
)
from passes.quantize.layer_rounding import EXACT_FROM, FINE_FROM
from passes.structure import Structure
from qcompile.errors import PassContractError, UsageError
from qcompile.exec.tensors import Tensor, inference
from qcompile.exec.torch_exec import TorchGraph, parts_of
from qcompile.exec.torch_moments import Moments
from qcompile.ir import Array, Graph
from qcompile.pm.base import ON_FLOAT, Levels, Pass, PassContext, PassResult, Report
from qcompile.pm.facts import CANDIDATES, Candidates, Rounded
from qcompile.pm.work import digest
from qcompile.semantics.grids import quantize_weights, weight_range, weight_scales

Rows = dict[int, tuple[Float, Float]]
"""Bits → integers (G, R, K) and scales (G, R)."""

METHODS = ("gptq", "nearest")

_SHRINK = np.array([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
"""Candidate scales as shares of the one that clips nothing; `round-weights` looks at a finer row."""

_FEW = 4
"""Candidates of a layer with many columns, which are costly: evenly from 1 to the least that pays at its width."""


def candidate_scales(bits: int, columns: int) -> NDArray[np.float64]:
    """Shares of the scale that clips nothing; of few columns equally many for all widths."""
    if columns < MANY:
        return _SHRINK
    least = min(0.2 + 0.1 * bits, 0.9)
    return np.array([(1.0 + least) / 2]) if bits >= FINE_FROM else np.linspace(1.0, least, _FEW)


@dataclass(frozen=True)
class RoundCandidates(Pass):
    """Round every layer at every width of the target, from what it reads in the float network.

    `round-weights` rounds the chosen plan, each layer on what the rounded layers before it give; which plan that will
    be is not known here, so float inputs stand in for it.  The second moments of a layer's columns are found once and
    factorised once for all widths.  Layers whose moments fit into `megabytes` are looked at in one run over the
    samples, so memory depends neither on their number nor on that of the samples.

    Attributes:
        method: "gptq", or "nearest" for an empty note: the analyses then round to nearest.
        samples: calibration samples, the first ones.
        positions: most output positions of a convolution looked at per sample.
        sweeps: of coordinate descent behind GPTQ; layers of many columns have one.
        megabytes: of moments held at a time.
        batch: samples run at a time.
    """

    name: ClassVar[str] = "round-candidates"
    levels: ClassVar[Levels] = ON_FLOAT
    provides = (CANDIDATES,)
    needs = ("calibration",)

    method: str = "gptq"
    samples: int = 512
    positions: int = 24
    sweeps: int = 2
    megabytes: int = 512
    batch: int = 32

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        """Raises UsageError for an unknown method, DataError where there are no samples."""
        if self.method not in METHODS:
            raise UsageError(f"unknown rounding {self.method!r}", hint=f"one of {', '.join(METHODS)}")
        if ctx.calibration is None:
            raise PassContractError("round-candidates needs calibration samples")
        table: dict[str, Candidates] = {}
        facts: dict[str, object] = {"method": self.method, "widths": list(ctx.target.weight_bits)}
        if self.method == "gptq":
            table, facts["kept"] = self._all(graph, ctx)
        return PassResult(graph.with_notes(graph.notes.with_table(CANDIDATES, table)), Report(facts=facts))

    def _all(self, graph: Graph, ctx: PassContext) -> tuple[dict[str, Candidates], int]:
        structure = Structure(graph)
        keys = self._keys(graph, ctx, structure.layers)
        found = {}
        for layer, key in keys.items():
            piece = None if ctx.work is None else ctx.work.get(key)
            if piece is not None:
                found[layer] = _unpacked(piece)
        kept, total = len(found), len(structure.layers)
        missing = [layer for layer in structure.layers if layer not in found]
        for part in self._parts(graph, missing):
            moments = self._moments(graph, ctx, structure, part)
            for layer in part:
                ctx.progress(self.name, len(found), total)
                found[layer] = rounded_at_all(graph, moments.pop(layer), ctx.target.weight_bits, self.sweeps)
                if ctx.work is not None:
                    ctx.work.put(keys[layer], _packed(found[layer]))
        return {layer: found[layer] for layer in structure.layers}, kept

    def _keys(self, graph: Graph, ctx: PassContext, layers: Sequence[str]) -> dict[str, str]:
        """Layer → the hash of all its candidates depend on."""
        if ctx.work is None or ctx.calibration is None:
            return dict.fromkeys(layers, "")
        data = [batch.digest for batch in first_samples(graph, ctx.calibration, self.samples, self.batch)]
        return {k: digest(self.spec(), graph.content_hash, data, ctx.seed, ctx.target.weight_bits, k) for k in layers}

    def _parts(self, graph: Graph, layers: Sequence[str]) -> Iterator[list[str]]:
        """Runs of layers whose moments fit into memory together; each holds at least one layer."""
        part: list[str] = []
        held = 0
        for layer in layers:
            shape = graph.const(graph.by_name[layer], "w").shape
            node = graph.by_name[layer]
            groups = node.attrs.int("groups") if node.op == "conv2d" else 1
            size = 2 * 8 * groups * int(np.prod(shape[1:])) ** 2
            if part and held + size > self.megabytes << 20:
                yield part
                part, held = [], 0
            part.append(layer)
            held += size
        if part:
            yield part

    def _moments(
        self, graph: Graph, ctx: PassContext, structure: Structure, layers: Sequence[str]
    ) -> dict[str, Moments]:
        found = {}
        readers: dict[str, list[str]] = {}
        for layer in layers:
            node = graph.by_name[layer]
            found[layer] = Moments(node, graph.const(node, "w"), self.positions, ctx.rng(f"{self.name}:{layer}"))
            readers.setdefault(structure.reads[layer], []).append(layer)

        def look(value: str, x: Tensor) -> Tensor:
            for layer in readers.get(value, ()):
                found[layer].add(x)
            return x

        runner = TorchGraph(graph)
        if ctx.calibration is None:
            raise PassContractError("round-candidates needs calibration samples")
        for batch in first_samples(graph, ctx.calibration, self.samples, self.batch):
            with inference():
                for part in parts_of(graph, batch.inputs):
                    runner.run(part, quantize=look)
        return found


def rounded_at_all(graph: Graph, moments: Moments, widths: Sequence[int], sweeps: int) -> Candidates:
    """A layer's weights and bias at every width."""
    node = moments.node
    weights = graph.const(node, "w")
    bias = graph.const_or(node, "b")
    b = np.zeros(len(weights)) if bias is None else bias.astype(np.float64)
    w = weights.reshape(moments.groups, len(weights) // moments.groups, -1).astype(np.float64)
    low = [bits for bits in widths if bits < EXACT_FROM]
    integers = round_at_widths(w, damped(moments.xx / moments.count), low, sweeps) if low else {}
    x = moments.x / moments.count
    found = {}
    for bits in widths:
        if bits in integers:
            q, scale = integers[bits]
        else:
            scale = weight_scales(weights, bits)
            q = quantize_weights(weights, bits, scale).astype(np.float64)
        rounded = Rounded(bits, q.reshape(weights.shape).astype(np.int8), scale.reshape(-1).astype(np.float64), b)
        b_new = corrected_bias(b, w, rounded.real().reshape(w.shape), x, np.zeros_like(x), moments.e)
        found[bits] = Rounded(bits, rounded.q, rounded.scale, b_new)
    return Candidates(found)


def round_at_widths(w: Float, h: Float, widths: Sequence[int], sweeps: int) -> Rows:
    """Integers (G, R, K) and scales (G, R) at each width: GPTQ for many widths and candidate scales in one run.

    Many columns cost much, and fine grids are forgiving: those of `FINE_FROM` and more bits have one candidate and no
    descent there.

    Args:
        w: (G, R, K).
        h: positive definite (G, K, K); factorised once.
    """
    w, h = working(w), working(h)
    factor = factorised(h)
    if w.shape[2] < MANY:
        return _rounded_alike(w, h, factor, widths, sweeps)
    fine = [bits for bits in widths if bits >= FINE_FROM]
    coarse = [bits for bits in widths if bits < FINE_FROM]
    found = _rounded_alike(w, h, factor, fine, 0) if fine else {}
    return found | (_rounded_alike(w, h, factor, coarse, sweeps) if coarse else {})


def _rounded_alike(w: Float, h: Float, factor: Factor, widths: Sequence[int], sweeps: int) -> Rows:
    """All widths with equally many candidate scales and as many sweeps of descent behind them."""
    groups, rows, columns = w.shape
    shares = np.stack([candidate_scales(bits, columns) for bits in widths]).astype(w.dtype)
    shape = (groups, *shares.shape, rows)
    tops = np.array([weight_range(bits)[1] for bits in widths], w.dtype)
    base = unclipped_scale(w[:, None, None], tops[:, None, None])
    scales = np.broadcast_to(base * shares[:, :, None], shape)
    q, scale = best_of(w, factor, scales, np.broadcast_to(tops[:, None, None], shape))
    if sweeps:
        stacked = np.broadcast_to(w[:, None], (groups, len(widths), rows, columns)).reshape(groups, -1, columns)
        q = descend(q, scale, stacked, h, np.repeat(tops, rows), 1 if columns >= MANY else sweeps)
        scale = best_scale(q, scale, stacked, h)
    parts = [slice(i * rows, (i + 1) * rows) for i in range(len(widths))]
    return {bits: (q[:, part], scale[:, part]) for bits, part in zip(widths, parts, strict=True)}


def _packed(candidates: Candidates) -> dict[str, Array]:
    return {
        f"{bits}.{part}": array
        for bits, rounded in candidates.by_bits.items()
        for part, array in (("q", rounded.q), ("scale", rounded.scale), ("b", rounded.b))
    }


def _unpacked(piece: Mapping[str, Array]) -> Candidates:
    widths = [int(name.split(".")[0]) for name in piece if name.endswith(".q")]
    return Candidates({b: Rounded(b, piece[f"{b}.q"], piece[f"{b}.scale"], piece[f"{b}.b"]) for b in widths})
