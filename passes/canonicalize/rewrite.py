"""What the canonical passes share: reading small constants, and rewriting until nothing changes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from qcompile.errors import PassContractError
from qcompile.ir import WEIGHTED, Graph, Node, rebuild

_ROUNDS = 10_000


def until_stable(graph: Graph, step: Callable[[Graph], Graph | None]) -> Graph:
    """Apply `step` until it returns None."""
    for _ in range(_ROUNDS):
        after = step(graph)
        if after is None:
            return graph
        graph = after
    raise PassContractError("a rewrite does not come to an end")


def without(graph: Graph, node: Node) -> Graph:
    """The graph in which a node's input takes its place."""
    return rebuild(graph, lambda _, n, rename: rename[n.inputs[0]] if n is node else None)


def scalar(graph: Graph, node: Node, role: str) -> float | None:
    """A constant's only number, or None where it holds several."""
    array = np.asarray(graph.const(node, role))
    return float(array.reshape(-1)[0]) if array.size == 1 else None


def real(graph: Graph, node: Node, role: str) -> NDArray[np.float64]:
    """A constant in float64, in which foldings compute."""
    return np.asarray(graph.const(node, role), dtype=np.float64)


def sole_producer(graph: Graph, value: str) -> Node | None:
    """The node that computes a value which only one node reads and no output shows."""
    node = graph.by_name.get(value)
    return node if node is not None and graph.sole_user(value) is not None else None


def channel_axis(layer: Node) -> int:
    """The axis of a layer's output along which its bias lies, not counting the batch."""
    return 0 if layer.op == "conv2d" else layer.type.rank - 2


def per_channel(array: NDArray[np.float64], axis: int, channels: int) -> NDArray[np.float64] | None:
    """A per-sample constant as a vector over one axis; None where it varies along another."""
    if any(size != 1 for i, size in enumerate(array.shape) if i != axis):
        return None
    return np.broadcast_to(array.reshape(-1), (channels,))


def scale_layer(
    graph: Graph, layer: Node, scale: NDArray[np.float64], shift: NDArray[np.float64]
) -> dict[str, NDArray[np.float32]]:
    """Constants of scale[c] · layer(x)[c] + shift[c], computed in float64 and rounded once."""
    w = real(graph, layer, "w")
    bias = real(graph, layer, "b") if layer.const("b") else np.zeros(len(w))
    scaled = w * scale.reshape((-1,) + (1,) * (w.ndim - 1))
    return {"w": scaled.astype(np.float32), "b": (bias * scale + shift).astype(np.float32)}


def is_layer(node: Node | None) -> bool:
    return node is not None and node.op in WEIGHTED
