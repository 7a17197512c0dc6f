"""The float graph in NumPy: slow, simple, and all that is needed to run an artifact's tail."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.errors import GraphError
from qcompile.exec import unary
from qcompile.ir import FLOAT, MOVEMENT, Array, Graph, Node
from qcompile.semantics.movement import max_pool, move, windows

Floats = NDArray[Any]
"""float32; a looser type than Array, with which mypy allows arithmetic."""
Consts = Mapping[str, Floats]
_WINDOW_BYTES = 128 << 20


def run(
    graph: Graph, inputs: Mapping[str, Array], *, keep: Sequence[str] = (), with_tail: bool = True
) -> dict[str, Array]:
    """Evaluate a float graph.

    Args:
        graph: level `float`.
        inputs: one array (n, …) per graph input; converted to float32.
        keep: names of further values to return.
        with_tail: run the host's output function too; the outputs are then those of the tail.

    Returns:
        float32 arrays by output name, and by value name for those in `keep`.
    """
    if graph.level != FLOAT:
        raise GraphError(f"the float evaluator was given a graph of the level {graph.level}")
    values: dict[str, Array] = {}
    for port in graph.inputs:
        if port.name not in inputs:
            raise GraphError(f"input {port.name!r} is missing")
        values[port.name] = np.asarray(inputs[port.name], dtype=np.float32)
    for node in graph.nodes:
        consts = {role: graph.consts[name] for role, name in node.consts}
        values[node.name] = evaluate(node, [values[v] for v in node.inputs], consts)
    kept = {name: values[name] for name in keep if name in values}
    outputs = {out.name: values[out.value] for out in graph.outputs}
    if with_tail and graph.tail is not None:
        further = [name for name in keep if name not in values]
        return run(graph.tail, outputs, keep=further) | kept
    return outputs | kept


def evaluate(node: Node, inputs: Sequence[Array], consts: Consts) -> Array:
    """One float operator on float32 arrays with a batch dimension."""
    if node.op in MOVEMENT:
        return move(node, inputs)
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(_RULES[node.op](node, inputs, consts)).astype(np.float32, copy=False)


def _conv2d(node: Node, inputs: Sequence[Floats], consts: Consts) -> Floats:
    x, w = inputs[0], consts["w"]
    depthwise = w.shape[1] == 1 and len(w) == x.shape[1] == node.attrs.int("groups")
    out = _depthwise(node, x, w) if depthwise else _dense(node, x, w)
    return out + consts["b"][None, :, None, None] if "b" in consts else out


def _depthwise(node: Node, x: Floats, w: Floats) -> Floats:
    """One channel each: a sum over the taps."""
    view = windows(x, w.shape[2:], node.attrs, 0.0)
    out: Floats = np.zeros(view.shape[:4], dtype=np.float32)
    for i, j in np.ndindex(*w.shape[2:]):
        out += view[..., i, j] * w[None, :, 0, i, j, None, None]
    return out


def _dense(node: Node, x: Floats, w: Floats) -> Floats:
    """A matrix product for each sample and group, a few samples at a time."""
    groups, taps = node.attrs.int("groups"), (int(w.shape[2]), int(w.shape[3]))
    matrix = w.reshape(1, groups, len(w) // groups, -1)
    _, channels, oh, ow = node.type.shape
    step = max(1, _WINDOW_BYTES // (4 * oh * ow * x.shape[1] * taps[0] * taps[1]))
    parts = []
    for start in range(0, len(x), step):
        view = windows(x[start : start + step], taps, node.attrs, 0.0)
        split = view.reshape(len(view), groups, -1, oh, ow, *taps)
        columns = split.transpose(0, 1, 2, 5, 6, 3, 4).reshape(len(view), groups, -1, oh * ow)
        parts.append(np.matmul(matrix, columns).reshape(len(view), channels, oh, ow))
    return np.concatenate(parts)


def _linear(node: Node, inputs: Sequence[Floats], consts: Consts) -> Floats:
    product = inputs[0] @ consts["w"].T
    return product + consts["b"] if "b" in consts else product


def _batch_norm(node: Node, inputs: Sequence[Floats], consts: Consts) -> Floats:
    scale = consts["scale"] / np.sqrt(consts["var"] + np.float32(node.attrs.float("eps")))
    shape = (1, -1) + (1,) * (inputs[0].ndim - 2)
    return (inputs[0] - consts["mean"].reshape(shape)) * scale.reshape(shape) + consts["bias"].reshape(shape)


def _avg_pool(node: Node, inputs: Sequence[Floats], consts: Consts) -> Floats:
    kernel = node.attrs.ints("kernel")
    total: Floats = windows(inputs[0], kernel, node.attrs, 0.0).sum(axis=(4, 5))
    if node.attrs.int("count_pad"):
        return np.asarray(total / np.float32(math.prod(kernel)))
    ones = np.ones((1, 1, *inputs[0].shape[2:]), np.float32)
    inside: Floats = windows(ones, kernel, node.attrs, 0.0).sum(axis=(4, 5))
    return np.asarray(total / inside)


def _softmax(node: Node, inputs: Sequence[Floats], consts: Consts) -> Floats:
    axis = node.attrs.int("axis")
    e = np.exp(inputs[0] - inputs[0].max(axis=axis, keepdims=True))
    return np.asarray(e / e.sum(axis=axis, keepdims=True))


def _prelu(node: Node, inputs: Sequence[Floats], consts: Consts) -> Floats:
    return np.where(inputs[0] >= 0, inputs[0], inputs[0] * consts["slope"][None])


_RULES: Mapping[str, Callable[[Node, Sequence[Floats], Consts], Floats]] = {
    "conv2d": _conv2d,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "affine": lambda node, xs, c: xs[0] * c["scale"][None] + c["shift"][None],
    "add": lambda node, xs, c: xs[0] + xs[1],
    "sub": lambda node, xs, c: xs[0] - xs[1],
    "mul": lambda node, xs, c: xs[0] * xs[1],
    "clip": lambda node, xs, c: np.clip(xs[0], node.attrs.float("lo"), node.attrs.float("hi")),
    "prelu": _prelu,
    "unary": lambda node, xs, c: unary.evaluate(node.attrs.str("expr"), xs[0]),
    "softmax": _softmax,
    "avg_pool": _avg_pool,
    "reduce_mean": lambda node, xs, c: xs[0].mean(
        axis=node.attrs.ints("axes"), keepdims=bool(node.attrs.int("keepdims")), dtype=np.float32
    ),
    "max_pool": lambda node, xs, c: max_pool(xs[0], node.attrs, -np.inf),
}
