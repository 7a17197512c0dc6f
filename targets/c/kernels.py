"""Convolutions and linear layers as scalar loops.

Every input byte that is loaded meets several weights and every weight several pixels, in local variables: a 2×2
tile needs one load for each multiply-add, on machines without vectors as well as for compilers that make vectors
of the innermost loop, which runs over consecutive bytes.
"""

from __future__ import annotations

from typing import Any

from qcompile.ir import Node
from targets._tvm.builder import Expr, cast, const
from targets._tvm.context import Context, Emitted
from targets._tvm.kernels.conv_direct import Geometry, geometry_of
from targets._tvm.kernels.epilogue import Epilogue, store
from targets._tvm.kernels.pointwise import fill_halo
from targets._tvm.kernels.tiling import spans
from targets._tvm.kernels.window import holds_padding, is_depthwise

_TILE = 2
"""Pixels and output channels of a tile."""

_UNROLLED_TAPS = 9


def _padded(ctx: Context, node: Node) -> bool:
    """Whether the frame of the input holds every padding pixel, with the value the operator wants."""
    layout = ctx.layout(node.inputs[0])
    return layout.channels_last and holds_padding(layout, node.attrs.ints("pad"), node.attrs.int("pad_value"))


def is_legal(ctx: Context) -> bool:
    """A convolution of channels-last images whose halo holds the padding, or a linear layer."""
    node = ctx.anchor
    if node.op not in ("conv2d", "linear") or ctx.layout(node.inputs[0]).dtype == "i32":
        return False
    if node.op == "linear":
        return len(ctx.out_layout.shape) <= 2 and not ctx.out_layout.channels_last
    return node.op == "conv2d" and not is_depthwise(ctx, node) and _padded(ctx, node) and ctx.out_layout.channels_last


def is_depthwise_legal(ctx: Context) -> bool:
    """A depthwise convolution of channels-last images whose halo holds the padding."""
    node = ctx.anchor
    if node.op != "conv2d" or ctx.layout(node.inputs[0]).dtype == "i32":
        return False
    return is_depthwise(ctx, node) and _padded(ctx, node) and ctx.out_layout.channels_last


class Dense:
    """The loops of one convolution or linear layer."""

    def __init__(self, ctx: Context) -> None:
        node = ctx.anchor
        self.ctx, self.b = ctx, ctx.b
        self.geometry: Geometry = geometry_of(ctx)
        self.source = ctx.stored(node.inputs[0])
        outputs, self.inputs, self.kh, self.kw = self.geometry.weights.shape
        self.per_group = outputs // self.geometry.groups
        axes = (0, 2, 3, 1) if node.op == "conv2d" else ()
        self.weights = ctx.constant(ctx.pack("plain", node.const("w"), dtype="int8", axes=axes))
        bias = node.const("b")
        self.bias = ctx.constant(ctx.pack("plain", bias, dtype="int32")) if bias else None
        self.epilogue = Epilogue(ctx, ctx.kernel.epilogue, node.name)
        # The taps of a row are one run of bytes where nothing lies between them.
        merged = self.geometry.dilation[1] == 1 and self.geometry.pixel == self.inputs
        self.runs: int = 1 if merged else self.kw
        self.run: int = self.kw * self.inputs if merged else self.inputs

    def emit(self) -> Emitted:
        g, b = self.geometry, self.b
        with b.loop(g.height) as row:
            for left, cols, pixels in spans(g.width, _TILE):
                with b.loop(cols) as j:
                    col = b.let(j * pixels + left)
                    with b.loop(g.groups) as group:
                        for first, count, channels in spans(self.per_group, _TILE):
                            with b.loop(count) as k:
                                channel = b.let(group * self.per_group + k * channels + first)
                                self._tile(row, col, group, channel, pixels, channels)
        fill_halo(self.ctx)
        return self.ctx.finish()

    def _tile(self, row: Expr, col: Expr, group: Expr, channel: Expr, pixels: int, channels: int) -> None:
        b, g = self.b, self.geometry
        places = [(p, c) for p in range(pixels) for c in range(channels)]
        accs: dict[tuple[int, int], Any] = {place: b.local("int32") for place in places}
        for (_, c), acc in accs.items():
            b.store(acc, 0, const(0) if self.bias is None else b.load(self.bias, channel + c))
        x0 = b.let(row * (g.stride[0] * g.row) + col * (g.stride[1] * g.pixel) + group * self.inputs + g.origin)
        taps = self.kh * self.kw * self.inputs
        w0 = b.let(channel * taps)
        with b.loop(self.kh) as i, b.loop(self.runs) as r:
            x1 = b.let(x0 + i * (g.dilation[0] * g.row) + r * (g.dilation[1] * g.pixel))
            w1 = b.let(w0 + (i * self.runs + r) * self.run)
            with b.loop(self.run) as n:
                xs = [
                    b.let(cast("int32", b.load(self.source.buffer, x1 + n + p * (g.stride[1] * g.pixel))))
                    for p in range(pixels)
                ]
                ws = [b.let(cast("int32", b.load(self.weights, w1 + n + c * taps))) for c in range(channels)]
                for p, c in places:
                    b.store(accs[p, c], 0, b.load(accs[p, c], 0) + xs[p] * ws[c])
        for p, c in places:
            coords = self._coords(b.let(channel + c), row, b.let(col + p))
            store(self.ctx, coords, b.let(self.epilogue.value(b.let(b.load(accs[p, c], 0)), coords, 1)))

    def _coords(self, channel: Expr, row: Expr, col: Expr) -> tuple[Expr, ...]:
        if self.ctx.anchor.op == "conv2d":
            return channel, row, col
        return (col, channel) if len(self.ctx.out_layout.shape) > 1 else (channel,)


def dense(ctx: Context) -> Emitted:
    """The kernel of `ctx`, for which `is_legal` holds."""
    return Dense(ctx).emit()


def depthwise(ctx: Context) -> Emitted:
    """The kernel of `ctx`, for which `is_depthwise_legal` holds: channels innermost, small windows unrolled."""
    node, b = ctx.anchor, ctx.b
    g = geometry_of(ctx)
    channels, _, kh, kw = g.weights.shape
    source = ctx.stored(node.inputs[0])
    weights = ctx.constant(ctx.pack("plain", node.const("w"), dtype="int8", axes=(2, 3, 0, 1)))
    bias = node.const("b")
    start = ctx.constant(ctx.pack("plain", bias, dtype="int32")) if bias else None
    epilogue = Epilogue(ctx, ctx.kernel.epilogue, node.name)

    def product(x0: Expr, channel: Expr, i: Any, j: Any) -> Expr:
        at = x0 + i * (g.dilation[0] * g.row) + j * (g.dilation[1] * g.pixel)
        factor = b.load(weights, (i * kw + j) * channels + channel)
        return cast("int32", b.load(source.buffer, at)) * cast("int32", factor)

    with b.loop(g.height) as row, b.loop(g.width) as col:
        first = b.let(row * (g.stride[0] * g.row) + col * (g.stride[1] * g.pixel) + g.origin)
        with b.loop(channels) as channel:
            x0 = b.let(first + channel)
            acc = const(0) if start is None else b.let(b.load(start, channel))
            if kh * kw <= _UNROLLED_TAPS:
                for tap in range(kh * kw):
                    acc = b.let(acc + product(x0, channel, const(tap // kw), const(tap % kw)))
            else:
                total = b.local("int32")
                b.store(total, 0, acc)
                with b.loop(kh) as i, b.loop(kw) as j:
                    b.store(total, 0, b.load(total, 0) + product(x0, channel, i, j))
                acc = b.let(b.load(total, 0))
            coords = (channel, row, col)
            store(ctx, coords, b.let(epilogue.value(acc, coords, 1)))
    fill_halo(ctx)
    return ctx.finish()
