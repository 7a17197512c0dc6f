"""How large an anchor's int32 can get, from the real weights: this proves cheaper arithmetic exact."""

from __future__ import annotations

import math

import numpy as np

from qcompile.ir import Node, int_range
from targets._tvm.context import Context

_INT32 = 1 << 31


def accumulator_bound(ctx: Context, node: Node) -> int:
    """The largest magnitude of the anchor's result."""
    dtype = ctx.layout(node.inputs[0]).dtype
    if dtype == "i32":
        return _INT32
    highest = int_range(dtype)[1]
    if node.op in ("conv2d", "linear"):
        w = ctx.const(node, "w")
        reach = np.abs(w.reshape(w.shape[0], -1).astype(np.int64)).sum(axis=1) * highest
        bias = ctx.const_or(node, "b")
        return int((reach if bias is None else reach + np.abs(bias.astype(np.int64))).max())
    if node.op == "sum_pool":
        return max(highest, node.attrs.int("pad_value")) * math.prod(node.attrs.ints("kernel"))
    return _INT32
