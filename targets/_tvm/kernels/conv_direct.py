"""Register-tiled direct convolution on channels-last uint8 activations, requantized in registers.

An accumulator holds `lanes` output channels of one pixel.  A step broadcasts 4 input bytes to all lanes and
adds their dot product with 4 weights per lane; weights are packed int8[O/lanes][steps][lanes][4].  Borders
are never tested: the input's halo holds the zero point.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from tvm import tirx as tir

from qcompile.ir import Array
from targets._tvm.builder import Expr, broadcast, const, reinterpret, shuffle, vec
from targets._tvm.context import Constant, Context, Emitted
from targets._tvm.isa import Operand, input_offset
from targets._tvm.kernels.epilogue import Epilogue, per_channel, store
from targets._tvm.kernels.pointwise import BY_ROWS, fill_halo
from targets._tvm.kernels.tiling import MOST, Tile, choose_tile, spans, unroll_of
from targets._tvm.kernels.window import holds_padding, is_depthwise
from targets._tvm.packing import STEP, first_channel, input_width
from targets._tvm.tir_kit import in_order, narrowed

FAR_BYTES = 64 << 10
"""Weights of this size have left the near caches when their turn comes again."""

_SHORT_STEPS = 64
"""Steps of a tile in which requantizing takes a share that is worth doing beside the next tile's products."""

_WEIGHT_COST = 8
"""Multiply-adds that take as long as reading a byte of weights from a far cache."""

_INPUT_COST = 8
"""Bytes of weights that are read from a far cache while one byte of input comes from another processor's."""


def shared_blocks(w: Array, groups: int, lanes: int) -> int:
    """Consecutive blocks of `lanes` outputs that read the same input channels; 0 if they do not nest."""
    per_group = int(w.shape[0]) // groups
    if groups == 1:
        return -(-per_group // lanes)
    if per_group % lanes == 0:
        return per_group // lanes
    return 1 if lanes % per_group == 0 else 0


def is_legal(ctx: Context) -> bool:
    """Whether the loads of the tiles stay inside the buffers and read what the operator defines."""
    node = ctx.anchor
    if not per_channel(ctx):
        return False
    if node.op == "linear":
        source = ctx.program.buffers[node.inputs[0]]
        # The last step of a row reads up to 3 bytes behind it, which only the arena has room for.
        room = source.place == "arena" or source.layout.shape[-1] % STEP == 0
        plain = not any(ctx.layout(v).channels_last for v in (*ctx.kernel.inputs, ctx.kernel.name))
        whole = all(ctx.layout(v).shape == ctx.out_layout.shape for v in ctx.kernel.inputs[1:])
        return room and plain and whole and source.layout.dtype != "i32"
    if node.op != "conv2d" or is_depthwise(ctx, node):
        return False
    layout, out = ctx.layout(node.inputs[0]), ctx.out_layout
    padded = holds_padding(layout, node.attrs.ints("pad"), node.attrs.int("pad_value"))
    last = all(ctx.layout(v).channels_last for v in ctx.kernel.inputs) and out.channels_last
    nested = shared_blocks(ctx.const(node, "w"), node.attrs.int("groups"), ctx.isa.lanes) > 0
    return last and layout.dtype != "i32" and padded and nested


@dataclass(frozen=True, slots=True)
class Geometry:
    """A convolution, or a linear layer seen as one of 1×1, in bytes of its input.

    Attributes:
        weights: int8[O, I/g, KH, KW].
        height, width: of the output.
        pixel, row: bytes from one input pixel, or row, to the next.
        origin: address of the first tap of output (0, 0).
        room: output channels that may be stored (surplus ones included).
    """

    weights: Array
    groups: int
    height: int
    width: int
    pixel: int
    row: int
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    origin: int
    room: int


def geometry_of(ctx: Context) -> Geometry:
    node, out = ctx.anchor, ctx.out_layout
    layout, w = ctx.layout(node.inputs[0]), ctx.const(node, "w")
    if node.op == "linear":
        rows, features = math.prod(out.shape[:-1]), w.shape[1]
        whole = w.reshape(*w.shape, 1, 1)
        return Geometry(whole, 1, 1, rows, features, rows * features, (1, 1), (1, 1), 0, out.shape[-1])
    row = layout.cols * layout.pixel
    top, left, _, _ = node.attrs.ints("pad")
    origin = (layout.halo[0] - top) * row + (layout.halo[1] - left) * layout.pixel
    return Geometry(
        w, node.attrs.int("groups"), out.shape[1], out.shape[2], layout.pixel, row,
        node.attrs.ints("stride"), node.attrs.ints("dilation"), origin, out.pixel,
    )  # fmt: skip


def pack_bias(ctx: Context, size: int) -> Constant:
    """int32[size] that the accumulators start from."""
    node, offset = ctx.anchor, input_offset(ctx.isa)
    bias = node.const("b")
    if offset:
        return ctx.pack("shifted_bias", node.const("w"), bias, offset=offset, size=size)
    return ctx.pack("vector", bias, size=size) if bias else ctx.pack("zeros", size=size)


class DirectConv:
    """The generator of one convolution's tiles.

    Attributes:
        step: bytes a run of inputs is padded to a multiple of.
        far: weights are prefetched.
        held, multiple: as in `choose_tile`.
        few: accumulators of a tile of few steps, at most.
    """

    step, held, multiple, few = STEP, 0, 1, MOST

    def __init__(self, ctx: Context) -> None:
        node = ctx.anchor
        self.ctx, self.b, self.isa = ctx, ctx.b, ctx.isa
        self.lanes = ctx.isa.lanes
        self.geometry = geometry_of(ctx)
        w = self.geometry.weights
        self.groups = self.geometry.groups
        self.source = ctx.stored(node.inputs[0])
        self.pixel, self.row = self.geometry.pixel, self.geometry.row
        self.stride, self.dilation = self.geometry.stride, self.geometry.dilation
        self.out_channels, _, self.kh, kw = w.shape
        self.blocks = -(-self.out_channels // self.lanes)
        # Taps of a row that are neighbours in memory form one run of bytes; else every tap is a run.
        merged = self.dilation[1] == 1 and self.groups == 1 and self.pixel == w.shape[1]
        self.runs = 1 if merged else kw
        self.run_bytes = kw * w.shape[1] if merged else input_width(w, self.groups, self.lanes)
        self.run_steps = self._count_run_steps()
        self.steps: int = self.kh * self.runs * self.run_steps + self._count_more_steps()
        self.weights = ctx.constant(self._pack(merged))
        self.far = self.blocks * self.block_bytes >= FAR_BYTES
        self._ahead: list[Expr] = []
        self.bias = ctx.constant(pack_bias(ctx, self.blocks * self.lanes))
        self.epilogue = Epilogue(ctx, ctx.kernel.epilogue, node.name)

    def _count_run_steps(self) -> int:
        return -(-self.run_bytes // self.step) * (self.step // STEP)

    def _count_more_steps(self) -> int:
        """Steps of a block behind those of its runs."""
        return 0

    def _pack(self, merged: bool) -> Constant:
        weights = self.ctx.anchor.const("w")
        return self.ctx.pack("direct", weights, groups=self.groups, lanes=self.lanes, merged=merged)

    @property
    def block_bytes(self) -> int:
        """Packed weights of a block."""
        return self.steps * self.lanes * STEP

    def _shared_blocks(self) -> int:
        """As in `choose_tile`."""
        return shared_blocks(self.geometry.weights, self.groups, self.lanes)

    def _coords(self, channel: Expr, row: Expr, col: Expr) -> tuple[Expr, ...]:
        """Logical output coordinates; a linear layer's columns are its flattened leading dimensions."""
        shape = self.ctx.out_layout.shape
        if self.ctx.anchor.op == "conv2d":
            return channel, row, col
        return (*([const(0)] * (len(shape) - 2)), *([col] if len(shape) > 1 else []), channel)

    def _first_channel(self, block: Expr) -> Expr:
        outputs, inputs = self.geometry.weights.shape[:2]
        return first_channel(block, outputs, inputs, self.groups, self.lanes)

    def emit(self) -> Emitted:
        ctx = self.ctx
        height, width = self.geometry.height, self.geometry.width
        tile = choose_tile(
            self.isa,
            self.blocks,
            height,
            width,
            self.steps,
            self._shared_blocks(),
            self.few if self.steps <= _SHORT_STEPS else MOST,
            held=self.held,
            multiple=self.multiple,
        )
        last = self.out_channels - (self.blocks - 1) * self.lanes
        exact = last if self.blocks * self.lanes > self.geometry.room else None
        whole = self.blocks - (exact is not None)
        parts = [(start, count, size, None) for start, count, size in spans(whole, tile.blocks)]
        if exact is not None:
            parts.append((whole, 1, 1, exact))
        weights = self.blocks * self.lanes * self.steps * STEP
        operations = weights * height * width + weights * _WEIGHT_COST
        rows, units = spans(height, tile.rows), -(-height // tile.rows)
        across, b = -(-width // tile.cols), self.b

        def unit_of(part: tuple[int, int, int, int | None], group: Expr, unit: Expr) -> None:
            """The tiles of some rows and of one group of blocks."""
            first, _, size, count = part
            block = b.let(group * size + first)
            for top, full, tile_rows in rows:
                inside = unit < full if top == 0 else unit >= units - 1
                with nullcontext() if len(rows) == 1 else b.when(inside):
                    row = b.let(unit * tile_rows) if top == 0 else const(top)
                    done = 0
                    for left, cols, tile_cols in spans(width, tile.cols):
                        with b.loop(cols) as j:
                            col = b.let(j * tile_cols + left)
                            self._plan_prefetch(size, unit * across + j + done, units * across)
                            self._tile(Tile(size, tile_rows, tile_cols), block, row, col, count)
                        done += cols

        # A group of blocks sees all pixels before the next one: weights come from a far cache once.
        if height >= BY_ROWS or weights <= _INPUT_COST * self.source.layout.bytes:
            with ctx.share(operations, units) as (start, own):
                for part in parts:
                    with b.loop(part[1]) as group, b.loop(own) as i:
                        unit_of(part, group, b.let(start + i))
                end = tir.min((start + own) * tile.rows, const(height))
                fill_halo(ctx, (b.let(start * tile.rows), b.let(end)))
        else:
            for part in parts:
                with b.loop(part[1] * units, ctx.parallel_kind(operations, part[1] * units)) as i:
                    unit_of(part, b.let(i // units), b.let(i % units))
            fill_halo(ctx)
        return ctx.finish()

    def _plan_prefetch(self, size: int, number: Expr, tiles: int) -> None:
        """Spread the weights of the next `size` blocks over the tiles of these: a block's weights for each tile."""
        each = -(-size // tiles)
        ahead = tir.min(number * each, const(size - each)) + size
        far = self.far and self.blocks > size
        self._ahead = [self.b.let((ahead + q) * self.block_bytes) for q in range(each)] if far else []

    def _tile(self, tile: Tile, block: Expr, row: Expr, col: Expr, exact: int | None) -> None:
        """Compute and store one register tile whose first output is (block, row, col)."""
        b, accs, x0 = self.b, self._accumulators(tile, block), self._first_input(block, row, col)
        self._add_products(tile, accs, x0, b.let(block * self.block_bytes))
        self._finish(tile, accs, block, row, col, exact)

    def _add_products(self, tile: Tile, accs: list[list[Any]], inputs: Expr, weights: Expr) -> None:
        """All runs of a tile, from the addresses of its first input and of its block's weights."""
        with self.b.loop(self.kh) as i, self.b.loop(self.runs) as r:
            taps = i * (self.dilation[0] * self.row) + r * (self.dilation[1] * self.pixel)
            first = weights + (i * self.runs + r) * (self.run_steps * self.lanes * STEP)
            self._run(tile, accs, inputs + taps, first)

    def _first_input(self, block: Expr, row: Expr, col: Expr) -> Expr:
        """Address of the first input that an output reads."""
        at = row * (self.stride[0] * self.row) + col * (self.stride[1] * self.pixel)
        return self.b.let(at + self._first_channel(block) + self.geometry.origin)

    def _accumulators(self, tile: Tile, block: Expr) -> list[list[Expr]]:
        """By block and pixel, holding the bias."""
        b, wide = self.b, vec("int32", self.lanes)
        accs = [[b.local(wide) for _ in range(tile.pixels)] for _ in range(tile.blocks)]
        for g, group in enumerate(accs):
            start = b.let(b.load(self.bias, (block + g) * self.lanes, self.lanes))
            for acc in group:
                b.store(acc, 0, start)
        return accs

    def _offset(self, tile: Tile, p: int) -> int:
        """Bytes from the first pixel's inputs of a tile to those of pixel number p."""
        return p // tile.cols * (self.stride[0] * self.row) + p % tile.cols * (self.stride[1] * self.pixel)

    def _run(self, tile: Tile, accs: list[list[Expr]], inputs: Expr, weights: Expr) -> None:
        """All steps of one run of bytes."""
        self._steps(tile, accs, inputs, weights, self.run_steps)

    def _steps(self, tile: Tile, accs: list[list[Any]], inputs: Expr, weights: Expr, count: int) -> None:
        """So many consecutive steps."""
        b, unroll = self.b, unroll_of(tile, count)
        with b.loop(self.ctx.opaque(count // unroll)) as d:
            w = b.let(weights + d * (unroll * self.lanes * STEP))
            x = b.let(inputs + d * (unroll * STEP))
            for u in range(unroll):
                self._step(tile, accs, x + u * STEP, w + u * self.lanes * STEP)

    def _finish(self, tile: Tile, accs: list[list[Expr]], block: Expr, row: Expr, col: Expr, exact: int | None) -> None:
        """Requantize and store a tile, four vectors at a time where they fill a vector of bytes."""
        b, places = self.b, [(p, g) for p in range(tile.pixels) for g in range(tile.blocks)]
        channels = [b.let((block + g) * self.lanes) for g in range(tile.blocks)]
        packed = len(places) // 4 * 4 if self.epilogue.narrows and exact is None else 0

        def coords(p: int, g: int) -> tuple[Expr, ...]:
            return self._coords(channels[g], row + p // tile.cols, col + p % tile.cols)

        for first in range(0, packed, 4):
            four = places[first : first + 4]
            late = [self.epilogue.late(b.load(accs[g][p], 0), coords(p, g), self.lanes) for p, g in four]
            whole = b.let(in_order(narrowed(self.isa, late)))
            for start, count in runs([p for p, _ in four]):
                part = list(range(start * self.lanes, (start + count) * self.lanes))
                store(self.ctx, coords(*four[start]), whole if count == 4 else shuffle(whole, whole, part))
        for p, g in places[packed:]:
            value = self.epilogue.value(b.load(accs[g][p], 0), coords(p, g), self.lanes)
            store(self.ctx, coords(p, g), value, exact)

    def _step(self, tile: Tile, accs: list[list[Any]], inputs: Expr, weights: Expr) -> None:
        """One dot product of 4 bytes into every accumulator of the tile."""
        b, stride = self.b, self.steps * self.lanes * STEP
        for ahead in self._ahead:
            b.prefetch(self.weights, weights + ahead)
        ws = [self._operand(weights + g * stride) for g in range(tile.blocks)]
        for p in range(tile.pixels):
            four = reinterpret("int32", b.load(self.source.buffer, inputs + self._offset(tile, p), STEP))
            self._add_pixel(accs, p, four, ws)

    def _add_pixel(self, accs: list[list[Any]], p: int, four: Expr, ws: list[Operand]) -> None:
        """The dot products of a pixel's 4 bytes with every block's weights."""
        x = tuple(self.b.let(v) for v in self.isa.prepare_x(self.b.let(broadcast(four, self.lanes))))
        for group, w in zip(accs, ws, strict=True):
            self._dot(group[p], x, w)

    def _operand(self, index: Expr) -> Operand:
        """One block's weights of a step."""
        loaded = reinterpret(vec("int32", self.lanes), self.b.load(self.weights, index, self.lanes * STEP))
        return tuple(self.b.let(v) for v in self.isa.prepare_w(self.b.let(loaded)))

    def _dot(self, acc: Any, x: Operand, w: Operand) -> None:
        """Add a dot product to an accumulator."""
        self.b.store(acc, 0, self.isa.dot4(self.b.load(acc, 0), x, w))


def runs(values: list[int]) -> list[tuple[int, int]]:
    """Stretches of equal neighbours: (start, count)."""
    starts = [i for i, v in enumerate(values) if i == 0 or v != values[i - 1]]
    return [(a, b - a) for a, b in zip(starts, [*starts[1:], len(values)], strict=True)]


def emit(ctx: Context) -> Emitted:
    """Generate the kernel of `ctx`, for which `is_legal` holds."""
    return DirectConv(ctx).emit()
