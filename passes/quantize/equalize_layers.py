"""equalize-layers: every channel in front of a depthwise convolution fills the grid it shares with the others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from passes.analysis.calibrate_ranges import run_watched
from passes.canonicalize.rewrite import real
from qcompile.errors import PassContractError
from qcompile.exec.tensors import Tensor
from qcompile.ir import WEIGHTED, Aspect, Graph, GraphBuilder, Node, rebuild
from qcompile.pm.base import ON_FLOAT, Batches, Levels, Nothing, Pass, PassContext, PassResult, Report

Real = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Pair:
    """A layer whose outputs only a depthwise convolution reads, through a clip or directly.

    Attributes:
        value: what the depthwise convolution reads.
        highest: bound of the clip, infinite where there is none.
    """

    layer: Node
    value: str
    depthwise: Node
    highest: float


@dataclass(frozen=True)
class EqualizeLayers(Pass):
    """Scale channels so that each uses the whole range of its tensor (Nagel et al. 2019, section 4.1).

    Before:  %a = conv2d(%x, w)    %r = clip(%a)    %d = depthwise(%r, v)
    After:   %a = conv2d(%x, k·w)  %r = clip(%a)    %d = depthwise(%r, v / k)

    Scaling by k > 0 passes through a ReLU.  Weights have a scale for each channel on both sides, so all of it is gained
    by the activations, which share one: k brings each channel's largest calibration value to that of all channels.  A
    clip at 6 stays where it is, so no channel is scaled past it; above what it had on the calibration data it is then
    clipped as the edge of a grid would clip it.  Behind a depthwise convolution, in front of a dense layer, the same
    scaling would take from one channel's weights what it gives to its activations: nothing is done there.

    Attributes:
        most: largest factor.
    """

    name: ClassVar[str] = "equalize-layers"
    levels: ClassVar[Levels] = ON_FLOAT
    changes = Aspect.WEIGHTS
    preserves = Nothing("a clip may cut values that are larger than any in the calibration data")
    needs = ("calibration",)

    most: float = 64.0

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        """Raises DataError where there are no samples."""
        if ctx.calibration is None:
            raise PassContractError("equalize-layers needs calibration samples")
        pairs = find_pairs(graph)
        if not pairs:
            return PassResult(graph)
        largest = channel_maxima(graph, {pair.value for pair in pairs}, ctx.calibration)
        factors = {pair.value: self._factors(largest[pair.value], pair.highest) for pair in pairs}
        up = {pair.layer.name: factors[pair.value] for pair in pairs}
        down = {pair.depthwise.name: factors[pair.value] for pair in pairs}
        done = tuple(f"{pair.value}: channels by up to {factors[pair.value].max():.1f}" for pair in pairs)

        def visit(b: GraphBuilder, node: Node, rename: Mapping[str, str]) -> str | None:
            if node.name not in up and node.name not in down:
                return None
            consts = {role: real(graph, node, role) for role, _ in node.consts}
            column = (-1,) + (1,) * (consts["w"].ndim - 1)
            if node.name in down:
                consts["w"] = consts["w"] / down[node.name].reshape(column)
            if node.name in up:
                own = up[node.name]
                shapes = {role: own.reshape(column) if role == "w" else own for role in consts}
                consts = {role: array * shapes[role] for role, array in consts.items()}
            rounded = {role: array.astype(np.float32) for role, array in consts.items()}
            inputs = [rename[value] for value in node.inputs]
            return b.add(
                node.op, inputs, name=node.name, consts=rounded, attrs=node.attrs, origin=(*node.origin, self.name)
            )

        return PassResult(rebuild(graph, visit), Report(done))

    def _factors(self, largest: Real, highest: float) -> Real:
        """k of each channel, from its largest magnitude."""
        whole = min(float(largest.max()), highest)
        room = np.divide(whole, largest, out=np.ones_like(largest), where=largest > 0)
        return np.clip(room, 1.0, self.most)


def find_pairs(graph: Graph) -> list[Pair]:
    """All pairs, in execution order."""
    found = []
    for node in graph.nodes:
        if node.op not in WEIGHTED or (user := graph.sole_user(node.name)) is None:
            continue
        value, highest = node.name, math.inf
        if user.op == "clip" and user.attrs.float("lo") in (0.0, -math.inf):
            value, highest = user.name, user.attrs.float("hi")
            user = graph.sole_user(value)
        if user is not None and highest > 0 and _is_depthwise(graph, user) and user.inputs[0] == value:
            found.append(Pair(node, value, user, highest))
    return found


def _is_depthwise(graph: Graph, node: Node) -> bool:
    """One group of one input channel for each output channel."""
    if node.op != "conv2d":
        return False
    outputs, inputs = graph.const(node, "w").shape[:2]
    return bool(inputs == 1 and outputs == node.attrs.int("groups") > 1)


def channel_maxima(graph: Graph, values: set[str], stream: Batches) -> dict[str, Real]:
    """The largest magnitude of every channel of some values (N, C, H, W) over all samples, streamed."""
    found: dict[str, Real] = {}

    def watch(value: str, x: Tensor) -> Tensor:
        if value in values:
            seen = x.detach().abs().amax(dim=(0, 2, 3)).double().numpy()
            found[value] = np.maximum(found[value], seen) if value in found else seen
        return x

    run_watched(graph, stream(), watch)
    return found
