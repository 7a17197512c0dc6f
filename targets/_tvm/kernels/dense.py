"""Convolution and linear layers as plain loops: any layout, groups, borders.  Correct for everything, tuned
for nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from qcompile.ir import Node
from targets._tvm.builder import Expr, cast, const
from targets._tvm.context import Context
from targets._tvm.kernels.epilogue import load_at
from targets._tvm.kernels.window import Window


def _bias(ctx: Context, node: Node) -> Any:
    constant = node.const("b")
    return None if constant is None else ctx.constant(ctx.pack("plain", constant, dtype="int32"))


def conv2d(ctx: Context, node: Node) -> Callable[[Sequence[Expr], int], Expr]:
    """int32 accumulators of a (grouped) convolution; weights int8[O][KH][KW][I/g]."""
    w = ctx.const(node, "w")
    out_channels, in_channels, kh, kw = w.shape
    per_group = out_channels // node.attrs.int("groups")
    window = Window(ctx, node, (kh, kw), node.attrs.int("pad_value"))
    weights = ctx.constant(ctx.pack("plain", node.const("w"), dtype="int8", axes=(0, 2, 3, 1)))
    start = _bias(ctx, node)

    def at(coords: Sequence[Expr], lanes: int) -> Expr:
        b = ctx.b
        o, h, x = coords
        acc = b.local("int32")
        b.store(acc, 0, b.load(start, o) if start is not None else const(0))
        first = b.let(o // per_group * in_channels)
        with b.loop(kh) as i, b.loop(kw) as j, b.loop(in_channels) as c:
            value = cast("int32", window.read(first + c, h, x, i, j, 1))
            factor = cast("int32", b.load(weights, ((o * kh + i) * kw + j) * in_channels + c))
            b.store(acc, 0, b.load(acc, 0) + value * factor)
        return b.let(b.load(acc, 0))

    return at


def linear(ctx: Context, node: Node) -> Callable[[Sequence[Expr], int], Expr]:
    """int32 accumulators of a linear layer over the last dimension; weights int8[O][K]."""
    w = ctx.const(node, "w")
    source = ctx.stored(node.inputs[0])
    weights = ctx.constant(ctx.pack("plain", node.const("w"), dtype="int8"))
    start = _bias(ctx, node)

    def at(coords: Sequence[Expr], lanes: int) -> Expr:
        b = ctx.b
        acc = b.local("int32")
        o = coords[-1]
        b.store(acc, 0, b.load(start, o) if start is not None else const(0))
        with b.loop(w.shape[1]) as k:
            value = cast("int32", load_at(ctx, source, (*coords[:-1], k), 1))
            b.store(acc, 0, b.load(acc, 0) + value * cast("int32", b.load(weights, o * w.shape[1] + k)))
        return b.let(b.load(acc, 0))

    return at
