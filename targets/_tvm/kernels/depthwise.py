"""Depthwise convolution by dot products of 4 taps, on vectors that run across pixels.

Four vectors of bytes under 4 taps are interleaved into 4 vectors of int32 lanes, each lane the 4 taps of one
channel (a quad).  A 3×3 window is then three dot products instead of nine products, and at stride 1 a column of
4 rows serves two rows of outputs.  Interleaving works inside segments of 16 bytes; what is known of a channel
(weights, bias, multipliers) lies in the same order, and `narrowed` undoes it.

A row of a channels-last image is seen as bytes: a vector covers 16-channel groups that may belong to several
pixels, so few channels waste nothing.  Parameters are packed circularly over the groups of a pixel.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from tvm import tirx as tir

from qcompile.ir import Node
from targets._tvm.builder import Expr, const, lanes_of, reinterpret, shuffle, vec
from targets._tvm.context import Constant, Context, Emitted
from targets._tvm.isa import input_offset
from targets._tvm.kernels.epilogue import Epilogue, choose_scale, per_channel
from targets._tvm.kernels.pointwise import fill_halo
from targets._tvm.kernels.tiling import spans
from targets._tvm.kernels.window import holds_padding, is_depthwise
from targets._tvm.packing import STEP, circular_groups
from targets._tvm.tir_kit import narrowed

GROUP = 16
"""Channels, and bytes, of a segment."""

_LARGEST_WINDOW = 25

_TAP_COST = 8
"""Multiply-adds of a dense convolution in the time of one of these."""


def is_legal(ctx: Context) -> bool:
    """A requantized depthwise convolution of whole groups of channels, with a halo, a vector or more in a row."""
    node, requant = ctx.anchor, ctx.kernel.epilogue
    if node.op != "conv2d" or requant is None or len(requant.inputs) > 1 or requant.const("mneg"):
        return False
    layout, out = ctx.layout(node.inputs[0]), ctx.out_layout
    bytewise = layout.dtype != "i32" and out.dtype != "i32"
    whole = layout.pixel == out.pixel > 0 and out.pixel % GROUP == 0
    padded = holds_padding(layout, node.attrs.ints("pad"), node.attrs.int("pad_value"))
    if not (is_depthwise(ctx, node) and bytewise and whole and padded and per_channel(ctx)):
        return False
    w = ctx.const(node, "w")
    small = w.shape[2] * w.shape[3] <= _LARGEST_WINDOW
    return small and choose_scale(ctx, requant, node.name) is not None and mode_of(ctx) is not None


def mode_of(ctx: Context) -> str | None:
    """How a row of outputs is cut into vectors of `size` bytes; None where it cannot.

    channels: a vector is part of one pixel.  flat: it covers any groups, which are consecutive in the input as
    well.  pixels: it covers several whole pixels, which are apart in the input.
    """
    size, pixel, out = ctx.isa.lanes * STEP, ctx.out_layout.pixel, ctx.out_layout
    stride = ctx.anchor.attrs.ints("stride")[1]
    if pixel % size == 0 or (stride != 1 and pixel > size):
        return "channels"
    if out.shape[2] * pixel < size:
        return None
    if stride == 1:
        return "flat"
    return "pixels" if size % pixel == 0 else None


@dataclass(frozen=True, slots=True)
class Quad:
    """4 taps: offsets in input pixels from the tile's first, and who uses them: (row, column, weights)."""

    offsets: tuple[tuple[int, int], ...]
    users: tuple[tuple[int, int, int], ...]


class Quads:
    """Which taps are interleaved: weights number v holds tap `taps[v][i]` (−1: zero) for byte i."""

    def __init__(self, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]) -> None:
        self.kernel, self.stride, self.dilation = kernel, stride, dilation
        kh, kw = kernel
        self.columns = kh in (3, 4)
        # Two rows of outputs read one column of 4 inputs.
        self.rows = 2 if kh == 3 and stride[0] == dilation[0] == 1 else 1
        self.taps: list[list[int]] = []
        if self.columns:
            for j in range(kw):
                for r in range(self.rows):
                    self.taps.append([(i - r) * kw + j if 0 <= i - r < kh else -1 for i in range(STEP)])
        else:
            every = kh * kw
            for first in range(0, every, STEP):
                self.taps.append([t if t < every else -1 for t in range(first, first + STEP)])

    def plan(self, rows: int, cols: int) -> list[Quad]:
        """The quads of a tile of outputs."""
        found: dict[tuple[tuple[int, int], ...], list[tuple[int, int, int]]] = {}
        (kh, kw), (_, sw), (dh, dw) = self.kernel, self.stride, self.dilation
        # Byte 3 of a column of three rows has the weight 0: it repeats the last row, which may be the buffer's.
        last = kh + rows - 2
        for t in range(cols):
            if self.columns:
                for j in range(kw):
                    key = tuple((min(i, last) * dh, t * sw + j * dw) for i in range(STEP))
                    found.setdefault(key, []).extend((r, t, j * self.rows + r) for r in range(rows))
                continue
            for v, taps in enumerate(self.taps):
                places = [(max(tap, 0) // kw * dh, t * sw + max(tap, 0) % kw * dw) for tap in taps]
                found.setdefault(tuple(places), []).append((0, t, v))
        return [Quad(offsets, tuple(users)) for offsets, users in found.items()]


class SegmentTable:
    """A constant of the requant in the order of interleaved lanes; coordinates are (quarter, first group)."""

    def __init__(self, ctx: Context, packed: Constant, groups: int) -> None:
        self._ctx, self._size = ctx, circular_groups(groups, ctx.isa.lanes // 4) * 4
        self._scalar = int(packed.array[0]) if packed.array.size == 1 else None
        self._pointer = None if packed.array.size == 1 else ctx.constant(packed)

    def at(self, coords: Any, lanes: int) -> Expr:
        if self._scalar is not None:
            return const(self._scalar, vec("int32", lanes))
        quarter, group = coords
        return self._ctx.b.load(self._pointer, group * 4 + quarter * self._size, lanes)


class Depthwise:
    """The generator."""

    def __init__(self, ctx: Context) -> None:
        node: Node = ctx.anchor
        self.ctx, self.b, self.isa, self.lanes = ctx, ctx.b, ctx.isa, ctx.isa.lanes
        self.size = self.lanes * STEP
        self.source = ctx.stored(node.inputs[0])
        layout, self.out = self.source.layout, ctx.out_layout
        w, pad = ctx.const(node, "w"), node.attrs.ints("pad")
        self.pixel, self.row = layout.pixel, layout.cols * layout.pixel
        self.groups, self.segments = self.pixel // GROUP, self.lanes // 4
        stride, dilation = node.attrs.ints("stride"), node.attrs.ints("dilation")
        self.stride = (stride[0], stride[1])
        self.quads = Quads((w.shape[2], w.shape[3]), self.stride, (dilation[0], dilation[1]))
        self.origin = (layout.halo[0] - pad[0]) * self.row + (layout.halo[1] - pad[1]) * self.pixel
        taps = w.shape[2] * w.shape[3] * _TAP_COST
        self.operations = self.out.shape[1] * self.out.shape[2] * self.pixel * taps
        taps, segments = self.quads.taps, self.segments
        packed = ctx.pack("quads", node.const("w"), taps=taps, groups=self.groups, segments=segments)
        self.weights = ctx.constant(packed)
        bias, offset = node.const("b"), input_offset(ctx.isa)
        self.bias = self._table("segment_table", bias) if bias else None
        if offset:
            self.bias = self._table("shifted_segments", node.const("w"), bias, offset=offset)
        self.epilogue = Epilogue(
            ctx, ctx.kernel.epilogue, node.name, table=lambda name: self._table("segment_table", name)
        )

    def _table(self, recipe: str, *constants: str | None, **params: int) -> SegmentTable:
        packed = self.ctx.pack(recipe, *constants, groups=self.groups, segments=self.segments, **params)
        return SegmentTable(self.ctx, packed, self.groups)

    def emit(self) -> Emitted:
        b, height, each = self.b, self.out.shape[1], self.quads.rows
        pieces, parts = spans(height, each), self._parts()
        # Threads share rows, and where vectors are many in few rows, also those of a row.
        with self.ctx.share(self.operations, -(-height // each) * parts) as (start, count):
            with b.loop(count) as i:
                unit, part = b.let((start + i) // parts), b.let((start + i) % parts)
                for top, full, rows in pieces:
                    with nullcontext() if len(pieces) == 1 else b.when(unit < full if top == 0 else unit >= full):
                        self._row(b.let(unit * rows) if top == 0 else const(top), rows, part)
            first, end = ((at + (parts - 1)) // parts * each for at in (start, start + count))
            fill_halo(self.ctx, (b.let(first), b.let(tir.min(end, const(height)))))
        return self.ctx.finish()

    def _parts(self) -> int:
        """Into how many parts a row of outputs is cut: vectors of channels, or none."""
        return -(-self.pixel // self.size) if mode_of(self.ctx) == "channels" else 1

    def _row(self, row: Expr, rows: int, part: Expr) -> None:
        """One or two rows of outputs, or a part of them."""
        b, width, size, pixel = self.b, self.out.shape[2], self.size, self.pixel
        x0 = b.let(row * (self.stride[0] * self.row) + self.origin)
        y0 = b.let(self.ctx.output.address((const(0), row, const(0))))
        mode, across = mode_of(self.ctx), self.stride[1] * self.pixel
        if mode == "channels":
            # The last vector overlaps the one before it.
            channel = b.let(tir.min(part * size, const(pixel - size)))
            for left, cols, wide in spans(width, 2):
                with b.loop(cols) as j:
                    col = j * wide + left
                    x, y = b.let(x0 + channel + col * across), b.let(y0 + channel + col * pixel)
                    self._tile(x, y, channel // GROUP, rows, wide, self._consecutive)
        elif mode == "flat":
            for start, count, _ in _pieces(width * pixel, size):
                with b.loop(count) as i:
                    first = b.let(i * size + start)
                    group = b.let(first // GROUP % self.groups) if size % pixel else const(start // GROUP % self.groups)
                    self._tile(b.let(x0 + first), b.let(y0 + first), group, rows, 1, self._consecutive)
        else:
            for start, count, _ in _pieces(width, size // pixel):
                with b.loop(count) as i:
                    col = b.let(i * (size // pixel) + start)
                    x, y = b.let(x0 + col * across), b.let(y0 + col * pixel)
                    self._tile(x, y, const(0), rows, 1, self._apart)

    def _consecutive(self, address: Expr) -> Expr:
        return self.b.load(self.source.buffer, address, self.size)

    def _apart(self, address: Expr) -> Expr:
        """The pixels under a vector of outputs, `stride` pixels from one to the next."""
        b, lanes = self.b, self.pixel
        parts = [
            b.let(b.load(self.source.buffer, address + k * self.stride[1] * lanes, lanes))
            for k in range(self.size // lanes)
        ]
        while len(parts) > 1:
            pairs = zip(parts[::2], parts[1::2], strict=True)
            lanes *= 2
            parts = [b.let(shuffle(one, two, list(range(lanes)))) for one, two in pairs]
        return parts[0]

    def _tile(self, x: Expr, y: Expr, group: Expr, rows: int, cols: int, read: Callable[[Expr], Expr]) -> None:
        """`rows` × `cols` vectors of outputs from address y; the first tap of the first lies at x."""
        b, wide = self.b, vec("int32", self.lanes)
        start = [b.let(self.bias.at((q, group), self.lanes) if self.bias else const(0, wide)) for q in range(STEP)]
        accs = {(r, t): list(start) for r in range(rows) for t in range(cols)}
        for quad in self.quads.plan(rows, cols):
            vectors = [b.let(read(x + dy * self.row + dx * self.pixel)) for dy, dx in quad.offsets]
            taps = [self.isa.prepare_x(v) for v in self._interleave(vectors)]
            for r, t, v in quad.users:
                for q in range(STEP):
                    w = self.isa.prepare_w(self._weights(v, q, group))
                    accs[r, t][q] = b.let(self.isa.dot4(accs[r, t][q], taps[q], w))
        out_row = self.out.cols * self.out.pixel
        for (r, t), four in accs.items():
            late = [self.epilogue.late(acc, (q, group), self.lanes) for q, acc in enumerate(four)]
            b.store(self.ctx.output.buffer, y + r * out_row + t * self.pixel, b.let(narrowed(self.isa, late)))

    def _weights(self, number: int, quarter: int, group: Expr) -> Expr:
        stride = circular_groups(self.groups, self.segments) * GROUP
        index = group * GROUP + (number * STEP + quarter) * stride
        return self.b.let(reinterpret(vec("int32", self.lanes), self.b.load(self.weights, index, self.size)))

    def _interleave(self, v: list[Expr]) -> list[Expr]:
        """4 vectors of bytes as 4 vectors of int32: byte i of every lane comes from vector i."""
        b, words = self.b, vec("int16", self.size // 2)
        pairs = [[self._unpack(v[i], v[i + 1], half) for half in (0, 1)] for i in (0, 2)]
        found = []
        for half in (0, 1):
            low, high = (b.let(reinterpret(words, pair[half])) for pair in pairs)
            for part in (0, 1):
                found.append(b.let(reinterpret(vec("int32", self.lanes), self._unpack(low, high, part))))
        return found

    def _unpack(self, x: Expr, y: Expr, half: int) -> Expr:
        """Elements of one half of every segment of x and y, in turn."""
        total = lanes_of(x)
        per = total // self.segments
        order = [
            s * per + half * (per // 2) + i + which * total
            for s in range(self.segments) for i in range(per // 2) for which in (0, 1)
        ]  # fmt: skip
        return self.b.let(shuffle(x, y, order))


def _pieces(total: int, size: int) -> list[tuple[int, int, int]]:
    """`spans`, but the remainder is a whole piece that overlaps the one before it."""
    found = [(0, total // size, size)]
    return found + ([(total - size, 1, size)] if total % size else [])


def emit(ctx: Context) -> Emitted:
    """Generate the kernel of `ctx`, for which `is_legal` holds."""
    return Depthwise(ctx).emit()
