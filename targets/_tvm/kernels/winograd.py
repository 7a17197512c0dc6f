"""Exact integer Winograd F(2×2, 3×3): 2.25 times fewer multiply-adds, the same bits.

Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks", with 2·G for G, so that every
number is an integer and the result is exactly 4 times the convolution; the requant divides by 4 as well.
With inputs in [0, q] the transformed inputs lie in [0, 4q] at position (1, 1) and in [−2q, 2q] elsewhere: q
≤ 63 fits uint8, after adding 128 to the latter.  The transformed weights must fit int8, which is checked on
the weights themselves.
"""

from __future__ import annotations

import numpy as np
from tvm import tirx as tir

from qcompile.ir import int_range
from targets._tvm.builder import Expr, broadcast, const, reinterpret, vec
from targets._tvm.context import Context, Emitted
from targets._tvm.kernels.bounds import accumulator_bound
from targets._tvm.kernels.epilogue import Epilogue, choose_scale, store
from targets._tvm.kernels.pointwise import fill_halo
from targets._tvm.kernels.tiling import Tile, choose_tile, spans, unroll_of
from targets._tvm.packing import STEP, WINOGRAD_OFFSET, winograd_transform

_POSITIONS = 16
_LARGEST_INPUT = 63
_ANCHOR_BITS = 2
"""The accumulators are 4 times the convolution."""

_ACCUMULATOR = 1 << 29
"""4·y must fit int32; everything before it may wrap."""


def is_legal(ctx: Context) -> bool:
    """3×3, stride 1, one group, channels-last with a halo; small enough inputs and weights, proved here."""
    node, requant = ctx.anchor, ctx.kernel.epilogue
    if node.op != "conv2d" or requant is None:
        return False
    w, attrs = ctx.const(node, "w"), node.attrs
    plain = w.shape[2:] == (3, 3) and attrs.ints("stride") == attrs.ints("dilation") == (1, 1)
    if not plain or attrs.int("groups") != 1:
        return False
    layout, out, pad = ctx.layout(node.inputs[0]), ctx.out_layout, attrs.ints("pad")
    covered = all(h >= p for h, p in zip(layout.halo, pad, strict=True))
    filled = not any(pad) or layout.fill == attrs.int("pad_value")
    last = all(ctx.layout(v).channels_last for v in ctx.kernel.inputs) and out.channels_last
    if not (covered and filled and last) or layout.dtype == "i32" or layout.pixel < _width(w.shape[1]):
        return False
    highest = int_range(layout.dtype)[1]
    if highest > _LARGEST_INPUT or int(np.abs(winograd_transform(w)).max()) > 127:
        return False
    small = accumulator_bound(ctx, node) < _ACCUMULATOR
    return small and choose_scale(ctx, requant, node.name, _ANCHOR_BITS) is not None


def _width(channels: int) -> int:
    """Input channels of a transformed pixel."""
    return -(-channels // 16) * 16


def _differences(d: list[Expr]) -> list[Expr]:
    """Bᵀ·d of four values."""
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _sums(m: list[Expr]) -> list[Expr]:
    """Aᵀ·m of four values."""
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


class Winograd:
    """The generator: chunks of tiles; each is transformed, multiplied position by position, and transformed
    back."""

    def __init__(self, ctx: Context) -> None:
        node = ctx.anchor
        self.ctx, self.b, self.isa, self.lanes = ctx, ctx.b, ctx.isa, ctx.isa.lanes
        w = ctx.const(node, "w")
        self.source = ctx.stored(node.inputs[0])
        layout, out = self.source.layout, ctx.out_layout
        self.width = _width(w.shape[1])
        self.steps = self.width // STEP
        self.blocks = -(-w.shape[0] // self.lanes)
        last = w.shape[0] - (self.blocks - 1) * self.lanes
        self.exact = last if self.blocks * self.lanes > out.pixel else None
        self.down, self.across = -(-out.shape[1] // 2), -(-out.shape[2] // 2)
        self.shift = (layout.halo[0] - node.attrs.ints("pad")[0], layout.halo[1] - node.attrs.ints("pad")[1])
        weights = ctx.pack("winograd_weights", node.const("w"), lanes=self.lanes, width=self.width)
        start = ctx.pack("winograd_start", node.const("w"), node.const("b"), lanes=self.lanes)
        self.weights, self.start = ctx.constant(weights), ctx.constant(start)
        self.epilogue = Epilogue(ctx, ctx.kernel.epilogue, node.name, _ANCHOR_BITS)

    def emit(self) -> Emitted:
        ctx, b = self.ctx, self.b
        tiles = self.down * self.across
        whole = self.blocks - (self.exact is not None)
        tile = choose_tile(self.isa, self.blocks, 1, tiles, self.steps, self.blocks)
        parts = [(start, count, size, None) for start, count, size in spans(whole, tile.blocks)]
        if self.exact is not None:
            parts.append((whole, 1, 1, self.exact))
        operations = _POSITIONS * tiles * self.blocks * self.lanes * self.width
        for first, chunks, size in spans(tiles, tile.cols):
            with b.loop(chunks, ctx.parallel_kind(operations, chunks)) as i:
                base = b.let(i * size + first)
                inputs = b.local("uint8", _POSITIONS * size * self.width)
                products = b.local("int32", _POSITIONS * size * tile.blocks * self.lanes)
                self._transform_inputs(inputs, base, size)
                for start, count, group, exact in parts:
                    with b.loop(count) as j:
                        block = b.let(j * group + start)
                        with b.loop(_POSITIONS) as position:
                            self._multiply(Tile(group, 1, size), inputs, products, block, position)
                        self._transform_outputs(Tile(group, 1, size), products, block, base, exact)
        fill_halo(ctx)
        return ctx.finish()

    def _transform_inputs(self, inputs: Expr, base: Expr, size: int) -> None:
        """uint8[16, size, width] from the 4×4 pixels under each tile; arithmetic modulo 256."""
        b, layout = self.b, self.source.layout
        row_bytes = layout.cols * layout.pixel
        with b.loop(size) as t:
            top = b.let((base + t) // self.across * 2 + self.shift[0])
            left = b.let((base + t) % self.across * 2 + self.shift[1])
            # The last row and column of a tile that sticks out feed only outputs that are not stored.
            rows = [b.let(tir.min(top + i, const(layout.rows - 1)) * row_bytes) for i in range(4)]
            cols = [b.let(tir.min(left + i, const(layout.cols - 1)) * layout.pixel) for i in range(4)]
            done = 0
            for lanes in (64, 32, 16):
                count = (self.width - done) // lanes
                if not count:
                    continue
                with b.loop(count) as i:
                    channel = b.let(i * lanes + done)
                    pixels = [
                        [b.let(b.load(self.source.buffer, row + col + channel, lanes)) for col in cols]
                        for row in rows
                    ]
                    columns = [
                        [b.let(v) for v in _differences([pixels[r][c] for r in range(4)])] for c in range(4)
                    ]
                    for r in range(4):
                        for c, value in enumerate(_differences([columns[k][r] for k in range(4)])):
                            signed = (r, c) != (1, 1)
                            shifted = value + const(WINOGRAD_OFFSET, vec("uint8", lanes)) if signed else value
                            b.store(inputs, ((r * 4 + c) * size + t) * self.width + channel, shifted)
                done += count * lanes

    def _multiply(self, tile: Tile, inputs: Expr, products: Expr, block: Expr, position: Expr) -> None:
        """int32[16, tiles, blocks·lanes]: the products of one position."""
        b, isa, wide = self.b, self.isa, vec("int32", self.lanes)
        accs = [[b.local(wide) for _ in range(tile.cols)] for _ in range(tile.blocks)]
        for g, group in enumerate(accs):
            index = (position * self.blocks + block + g) * self.lanes
            start = b.let(b.load(self.start, index, self.lanes))
            for acc in group:
                b.store(acc, 0, start)
        stride = self.steps * self.lanes * STEP
        w0 = b.let((position * self.blocks + block) * stride)
        x0 = b.let(position * (tile.cols * self.width))
        unroll = unroll_of(tile, self.steps)
        with b.loop(self.steps // unroll) as d:
            for u in range(unroll):
                step = d * unroll + u
                ws = []
                for g in range(tile.blocks):
                    loaded = b.load(
                        self.weights, w0 + step * (self.lanes * STEP) + g * stride, self.lanes * STEP
                    )
                    ws.append(tuple(b.let(v) for v in isa.prepare_w(b.let(reinterpret(wide, loaded)))))
                for t in range(tile.cols):
                    four = reinterpret("int32", b.load(inputs, x0 + step * STEP + t * self.width, STEP))
                    x = tuple(b.let(v) for v in isa.prepare_x(b.let(broadcast(four, self.lanes))))
                    for g in range(tile.blocks):
                        b.store(accs[g][t], 0, isa.dot4(b.load(accs[g][t], 0), x, ws[g]))
        for g, group in enumerate(accs):
            for t, acc in enumerate(group):
                index = (position * tile.cols + t) * (tile.blocks * self.lanes) + g * self.lanes
                b.store(products, index, b.load(acc, 0))

    def _transform_outputs(
        self, tile: Tile, products: Expr, block: Expr, base: Expr, exact: int | None
    ) -> None:
        """Four requantized outputs of every tile and block."""
        b = self.b
        _, height, width = self.ctx.out_layout.shape
        with b.loop(tile.cols) as t:
            row = b.let((base + t) // self.across * 2)
            col = b.let((base + t) % self.across * 2)
            with b.loop(tile.blocks) as g:
                channel = b.let((block + g) * self.lanes)

                def product(position: int, t: Expr = t, g: Expr = g) -> Expr:
                    index = (position * tile.cols + t) * (tile.blocks * self.lanes) + g * self.lanes
                    return b.let(b.load(products, index, self.lanes))

                columns = [
                    [b.let(v) for v in _sums([product(r * 4 + c) for r in range(4)])] for c in range(4)
                ]
                for r in range(2):
                    for c, acc in enumerate(_sums([columns[k][r] for k in range(4)])):
                        inside = [row + r < height] * (r == 1 and height % 2) + [col + c < width] * (
                            c == 1 and width % 2
                        )
                        coords = (channel, row + r, col + c)
                        if inside:
                            with b.when(tir.all(*inside)):
                                store(
                                    self.ctx,
                                    coords,
                                    self.epilogue.value(b.let(acc), coords, self.lanes),
                                    exact,
                                )
                        else:
                            store(
                                self.ctx, coords, self.epilogue.value(b.let(acc), coords, self.lanes), exact
                            )


def emit(ctx: Context) -> Emitted:
    """Generate the kernel of `ctx`, for which `is_legal` holds."""
    return Winograd(ctx).emit()
