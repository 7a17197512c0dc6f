"""fold-batch-norm: a batch normalisation disappears into the layer before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from passes.canonicalize.rewrite import channel_axis, is_layer, real, scale_layer, sole_producer
from qcompile.ir import Aspect, Graph, GraphBuilder, Node, rebuild
from qcompile.pm.base import ON_FLOAT, Close, Levels, Pass, PassContext, PassResult, Report


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Fold batch_norm into the conv2d or linear before it; elsewhere it becomes an affine.

    Before:  %c = conv2d(%x, w)             After:  %c = conv2d(%x, w', b')
             %n = batch_norm(%c, …)

    With r = scale / √(var + eps): w' = r·w and b' = r·(b − mean) + bias, in float64, rounded once.
    """

    name: ClassVar[str] = "fold-batch-norm"
    levels: ClassVar[Levels] = ON_FLOAT
    changes = Aspect.STRUCTURE | Aspect.WEIGHTS
    preserves = Close(1e-3)

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        done: list[str] = []
        refused: list[str] = []
        into = {}
        for node in graph.nodes:
            if node.op == "batch_norm":
                layer = sole_producer(graph, node.inputs[0])
                if layer is not None and is_layer(layer) and channel_axis(layer) == 0:
                    into[layer.name] = node
                    done.append(f"{node.name} into {layer.name}")
                else:
                    refused.append(f"{node.name} becomes an affine: {_why(graph, node)}")
        norms = {norm.name: layer for layer, norm in into.items()}

        def visit(b: GraphBuilder, node: Node, rename: Mapping[str, str]) -> str | None:
            if norm := into.get(node.name):
                scale, shift = _coefficients(graph, norm)
                consts = scale_layer(graph, node, scale, shift)
                origin = (*node.origin, *norm.origin, self.name)
                return b.add(
                    node.op,
                    [rename[node.inputs[0]]],
                    name=node.name,
                    consts=consts,
                    attrs=node.attrs,
                    origin=origin,
                )
            if node.name in norms:
                return rename[norms[node.name]]
            if node.op != "batch_norm":
                return None
            scale, shift = _coefficients(graph, node)
            shape = (-1,) + (1,) * (node.type.rank - 2)
            parts = {"scale": scale.astype(np.float32), "shift": shift.astype(np.float32)}
            shaped = {role: array.reshape(shape) for role, array in parts.items()}
            return b.add(
                "affine",
                [rename[node.inputs[0]]],
                name=node.name,
                consts=shaped,
                origin=(*node.origin, self.name),
            )

        return PassResult(rebuild(graph, visit), Report(tuple(done), tuple(refused)))


def _coefficients(graph: Graph, norm: Node) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """r and bias − r·mean."""
    scale = real(graph, norm, "scale") / np.sqrt(real(graph, norm, "var") + norm.attrs.float("eps"))
    return scale, real(graph, norm, "bias") - scale * real(graph, norm, "mean")


def _why(graph: Graph, norm: Node) -> str:
    source = graph.by_name.get(norm.inputs[0])
    if source is None or not is_layer(source):
        return "no conv2d or linear computes its input"
    if graph.sole_user(source.name) is None:
        return f"the output of {source.name} is read elsewhere too"
    return f"the channels of {source.name} are not its last axis"
