"""The interpreter of the integer level: the reference every artifact must equal bit for bit.

Integer sums of products run as float64 matrix products, which are exact below 2^53 (the range proof bounds them by
2^31) and much faster than int64 ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from qcompile.errors import GraphError
from qcompile.ir import INT, MOVEMENT, Array, Graph, Node, storage
from qcompile.semantics import scalar
from qcompile.semantics.kits import NumpyKit
from qcompile.semantics.movement import max_pool, move, windows

_KIT = NumpyKit()
_WINDOW_BYTES = 128 << 20


def run(graph: Graph, inputs: Mapping[str, Array], keep: Sequence[str] = ()) -> dict[str, Array]:
    """Evaluate an integer graph.

    Args:
        graph: level `int`.
        inputs: one integer array (n, …) per graph input, within the range of its dtype.
        keep: names of further values to return.

    Returns:
        Integer arrays by output name, and by value name for those in `keep`.
    """
    if graph.level != INT:
        raise GraphError(f"the integer interpreter was given a {graph.level} graph")
    values: dict[str, Array] = {}
    for port in graph.inputs:
        values[port.name] = np.asarray(inputs[port.name]).astype(storage(port.type.dtype), copy=False)
    last = _last_uses(graph, keep)
    for node in graph.nodes:
        consts = {role: graph.consts[name] for role, name in node.consts}
        values[node.name] = evaluate(node, [values[v] for v in node.inputs], consts)
        for value in last.get(node.name, ()):
            del values[value]
    return {out.name: values[out.value] for out in graph.outputs} | {name: values[name] for name in keep}


def _last_uses(graph: Graph, keep: Sequence[str]) -> dict[str, list[str]]:
    held = graph.output_values | set(keep)
    found: dict[str, list[str]] = {}
    for value, users in graph.users.items():
        if users and value not in held:
            found.setdefault(users[-1].name, []).append(value)
    return found


def evaluate(node: Node, inputs: Sequence[Array], consts: Mapping[str, Array]) -> Array:
    """One integer operator on arrays with a batch dimension; the result has the storage dtype of the node's type."""
    if node.op in MOVEMENT:
        return move(node, inputs)
    return _RULES[node.op](node, inputs, consts).astype(storage(node.type.dtype), copy=False)


def _conv2d(node: Node, inputs: Sequence[Array], consts: Mapping[str, Array]) -> Array:
    x, w = inputs[0], consts["w"]
    groups, fill = node.attrs.int("groups"), node.attrs.int("pad_value")
    if w.shape[1] == 1 and groups == x.shape[1] == w.shape[0]:
        view = windows(x, w.shape[2:], node.attrs, fill)
        out = np.zeros(view.shape[:4], dtype=np.int32)
        for i in range(w.shape[2]):
            for j in range(w.shape[3]):
                out += view[..., i, j] * w[None, :, 0, i, j, None, None].astype(np.int32)
    else:
        parts = zip(np.split(x, groups, axis=1), np.split(w, groups, axis=0), strict=True)
        out = np.concatenate([_dense(a, b, node, fill) for a, b in parts], axis=1)
    return out + consts["b"].astype(np.int32)[None, :, None, None] if "b" in consts else out


def _dense(x: Array, w: Array, node: Node, fill: int) -> Array:
    """An ungrouped convolution by im2col, a few samples at a time."""
    matrix = w.transpose(2, 3, 1, 0).reshape(-1, w.shape[0]).astype(np.float64)
    _, _, oh, ow = node.type.shape
    step = max(1, _WINDOW_BYTES // (8 * oh * ow * matrix.shape[0]))
    parts = []
    for start in range(0, len(x), step):
        chunk = x[start : start + step].astype(np.float64)
        columns = windows(chunk, w.shape[2:], node.attrs, fill).transpose(0, 2, 3, 4, 5, 1)
        product = columns.reshape(-1, matrix.shape[0]) @ matrix
        parts.append(product.astype(np.int32).reshape(len(chunk), oh, ow, -1).transpose(0, 3, 1, 2))
    return np.concatenate(parts)


def _linear(node: Node, inputs: Sequence[Array], consts: Mapping[str, Array]) -> Array:
    product = inputs[0].astype(np.float64) @ consts["w"].T.astype(np.float64)
    return product.astype(np.int32) + consts["b"].astype(np.int32) if "b" in consts else product.astype(np.int32)


def _mul(node: Node, inputs: Sequence[Array], consts: Mapping[str, Array]) -> Array:
    return np.asarray(scalar.multiply(_KIT, inputs[0], inputs[1], node.attrs.ints("zeros")))


def _sum_pool(node: Node, inputs: Sequence[Array], consts: Mapping[str, Array]) -> Array:
    view = windows(inputs[0], node.attrs.ints("kernel"), node.attrs, node.attrs.int("pad_value"))
    return np.asarray(view.sum(axis=(4, 5), dtype=np.int64))


def _reduce_sum(node: Node, inputs: Sequence[Array], consts: Mapping[str, Array]) -> Array:
    return np.asarray(
        inputs[0].sum(axis=node.attrs.ints("axes"), keepdims=bool(node.attrs.int("keepdims")), dtype=np.int64)
    )


def _requant(node: Node, inputs: Sequence[Array], consts: Mapping[str, Array]) -> Array:
    attrs = node.attrs
    multipliers = [consts[f"m{i}"][None] for i in range(len(inputs))]
    negative = consts["mneg"][None] if "mneg" in consts else None
    zeros, zp, lo, hi = attrs.ints("zeros"), attrs.int("zp"), attrs.int("lo"), attrs.int("hi")
    return np.asarray(scalar.requant(_KIT, inputs, multipliers, consts["e"][None], zeros, zp, lo, hi, negative))


def _table(node: Node, inputs: Sequence[Array], consts: Mapping[str, Array]) -> Array:
    return consts["t"][inputs[0]]


def _max_pool(node: Node, inputs: Sequence[Array], consts: Mapping[str, Array]) -> Array:
    lowest = 0 if inputs[0].dtype.kind == "u" else np.iinfo(inputs[0].dtype).min
    return max_pool(inputs[0], node.attrs, lowest)


_RULES: Mapping[str, Callable[[Node, Sequence[Array], Mapping[str, Array]], Array]] = {
    "conv2d": _conv2d,
    "linear": _linear,
    "mul": _mul,
    "sum_pool": _sum_pool,
    "reduce_sum": _reduce_sum,
    "requant": _requant,
    "table": _table,
    "max_pool": _max_pool,
}
