"""Pooling and depthwise convolution: windows over pixels, vectorised over channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm import tirx as tir

from qcompile.ir import Node, storage
from qcompile.target.program import Layout
from targets._tvm.builder import Expr, cast, const, vec
from targets._tvm.context import Context, Stored
from targets._tvm.kernels.epilogue import load_at

_UNROLLED_TAPS = 25
"""Windows up to 5×5 are unrolled, so that their constants stay in registers."""


def holds_padding(layout: Layout, pad: Sequence[int], fill: int) -> bool:
    """Whether windows that reach `pad` (top, left, bottom, right) over the border read `fill` there without a test."""
    covered = layout.channels_last and all(h >= p for h, p in zip(layout.halo, pad, strict=True))
    return not any(pad) or (covered and layout.fill == fill)


class Window:
    """The geometry of a windowed node and its reads, with border tests only where no halo covers them."""

    def __init__(self, ctx: Context, node: Node, kernel: Sequence[int], fill: int) -> None:
        self.ctx = ctx
        self.kernel = (kernel[0], kernel[1])
        self.stride = node.attrs.ints("stride")
        self.dilation = node.attrs.ints("dilation") if "dilation" in node.attrs else (1, 1)
        self.pad = node.attrs.ints("pad")
        self.fill = fill
        self.source: Stored = ctx.stored(node.inputs[0])
        layout = self.source.layout
        self.tested = not holds_padding(layout, self.pad, fill)

    def read(self, c: Expr, h: Expr, w: Expr, kh: Any, kw: Any, lanes: int) -> Expr:
        """The element(s) under one tap of the window at output pixel (h, w)."""
        row = h * self.stride[0] + kh * self.dilation[0] - self.pad[0]
        col = w * self.stride[1] + kw * self.dilation[1] - self.pad[1]
        value = load_at(self.ctx, self.source, (c, row, col), lanes)
        if not self.tested:
            return value
        _, height, width = self.source.layout.shape
        inside = tir.all(row >= 0, row < height, col >= 0, col < width)
        dtype = storage(self.source.layout.dtype).name
        return tir.if_then_else(inside, value, const(self.fill, vec(dtype, lanes)))

    def fold(self, start: Expr, step: Callable[[Expr, Any, Any], Expr]) -> Expr:
        """step(…step(start, 0, 0)…, KH−1, KW−1) over the taps, in registers."""
        b = self.ctx.b
        rows, cols = self.kernel
        if rows * cols <= _UNROLLED_TAPS:
            for kh in range(rows):
                for kw in range(cols):
                    start = b.let(step(start, kh, kw))
            return start
        acc = b.local(str(start.ty.dtype))
        b.store(acc, 0, start)
        with b.loop(rows) as i, b.loop(cols) as j:
            b.store(acc, 0, step(b.load(acc, 0), i, j))
        return b.let(b.load(acc, 0))


def sum_pool(ctx: Context, node: Node) -> Callable[[Sequence[Expr], int], Expr]:
    """int32 sums over windows of uint8 or int32."""
    window = Window(ctx, node, node.attrs.ints("kernel"), node.attrs.int("pad_value"))

    def at(coords: Sequence[Expr], lanes: int) -> Expr:
        c, h, w = coords
        wide = vec("int32", lanes)
        return window.fold(const(0, wide), lambda acc, i, j: acc + cast(wide, window.read(c, h, w, i, j, lanes)))

    return at


def max_pool(ctx: Context, node: Node) -> Callable[[Sequence[Expr], int], Expr]:
    """Maxima over windows in the storage dtype; padding counts as the smallest value."""
    dtype = storage(node.type.dtype)
    lowest = 0 if dtype.kind == "u" else int(np.iinfo(np.int32).min)
    window = Window(ctx, node, node.attrs.ints("kernel"), lowest)

    def at(coords: Sequence[Expr], lanes: int) -> Expr:
        c, h, w = coords
        start = const(lowest, vec(dtype.name, lanes))
        return window.fold(start, lambda acc, i, j: tir.max(acc, window.read(c, h, w, i, j, lanes)))

    return at


def is_depthwise(ctx: Context, node: Node) -> bool:
    """One input channel, one filter, per output channel."""
    w = ctx.const(node, "w")
    return node.op == "conv2d" and w.shape[1] == 1 and node.attrs.int("groups") == w.shape[0]


def depthwise(ctx: Context, node: Node) -> Callable[[Sequence[Expr], int], Expr]:
    """Depthwise convolution; weights packed int32[KH·KW][channels rounded up to lanes]."""
    w = ctx.const(node, "w")
    channels, _, kh, kw = w.shape
    pad = -channels % ctx.isa.lanes
    window = Window(ctx, node, (kh, kw), node.attrs.int("pad_value"))
    weights = ctx.constant(ctx.pack("depthwise", node.const("w"), lanes=ctx.isa.lanes))
    bias = node.const("b")
    start = None if bias is None else ctx.constant(ctx.pack("vector", bias, size=channels + pad))

    def at(coords: Sequence[Expr], lanes: int) -> Expr:
        c, h, x = coords
        wide = vec("int32", lanes)

        def step(acc: Expr, i: Any, j: Any) -> Expr:
            factor = ctx.b.load(weights, c + (i * kw + j) * (channels + pad), lanes)
            value = cast(wide, window.read(c, h, x, i, j, lanes))
            return ctx.isa.multiply_add(acc, value, factor) if lanes > 1 else acc + value * factor

        return window.fold(ctx.b.load(start, c, lanes) if start is not None else const(0, wide), step)

    return at
