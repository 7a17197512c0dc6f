"""How large an anchor's int32 can get, from the real weights: this proves cheaper arithmetic exact."""

from __future__ import annotations

import math

import numpy as np

from qcompile.ir import Array, Node, int_range
from targets._tvm.context import Context

_INT32 = 1 << 31


def weight_reach(w: Array) -> int:
    """The largest sum of magnitudes of an output's weights."""
    return int(np.abs(w.reshape(w.shape[0], -1).astype(np.int64)).sum(axis=1).max(initial=0))


def accumulator_bound(ctx: Context, node: Node) -> int:
    """The largest magnitude of the anchor's result."""
    dtype = ctx.layout(node.inputs[0]).dtype
    if dtype == "i32":
        return _INT32
    lowest, highest = int_range(dtype)
    if node.op in ("conv2d", "linear"):
        w = ctx.const(node, "w")
        w = w.reshape(w.shape[0], -1).astype(np.int64)
        up, down, bias = np.maximum(w, 0).sum(axis=1), np.minimum(w, 0).sum(axis=1), ctx.const_or(node, "b")
        ends = np.stack([highest * up + lowest * down, highest * down + lowest * up])
        return int(np.abs(ends if bias is None else ends + bias.astype(np.int64)).max())
    if node.op == "sum_pool":
        return max(highest, node.attrs.int("pad_value")) * math.prod(node.attrs.ints("kernel"))
    return _INT32
