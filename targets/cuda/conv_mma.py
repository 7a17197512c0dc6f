"""Convolution as an implicit matrix product on 8-bit tensor cores, requantized before it leaves the block.

Rows are output pixels, columns output channels, and the inner dimension runs over taps and channels of a pixel
in pieces of 16 bytes, which never straddle two taps because pixels are multiples of 16 bytes.  A block of four
warps computes `rows` × `cols` outputs; chunks of 64 bytes of the inner dimension are copied to shared memory
asynchronously while the chunk before is multiplied.  Shared rows are 80 bytes apart, so that the 32 words of a
fragment lie in 32 banks.

The instruction is m16n8k32 (PTX ISA, "Matrix multiply-accumulate operation using mma instruction"): with
g = lane // 4 and t = lane % 4 a lane holds words (row g, bytes 4t…), (row g + 8), and both again 16 bytes on,
of the first factor; (column g, bytes 4t…), and 16 bytes on, of the second; and of the result rows g and g + 8,
columns 2t and 2t + 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx as tir

from targets._tvm.builder import Builder, Expr, cast, const
from targets._tvm.context import Context, Emitted
from targets._tvm.kernels.conv_direct import geometry_of
from targets._tvm.kernels.epilogue import Epilogue, per_channel
from targets._tvm.kernels.window import holds_padding, is_depthwise

GRANULE = 16
"""Bytes of one copy."""
CHUNK = 64
"""Bytes of the inner dimension in shared memory at a time."""
PITCH = CHUNK + 16
"""Bytes from one row in shared memory to the next."""
WARPS = 4
LANES = 32
THREADS = WARPS * LANES
_STAGES = 2
_PARTS = CHUNK // GRANULE

BLOCK, LANE = "q_block", "q_lane"
"""The variables a block kernel reads: its number in the grid, and the thread's number in the block."""

BLOCKS_ATTRIBUTE = "qcompile.blocks"
"""On a function: it is written for this many blocks of THREADS threads; others are spread by `grid`."""


@dataclass(frozen=True, slots=True)
class Tile:
    """Outputs of one block: pixels × channels; multiples of 32 and 16."""

    rows: int
    cols: int

    @property
    def name(self) -> str:
        return f"mma-{self.rows}x{self.cols}"


TILES = (Tile(64, 64), Tile(128, 64), Tile(32, 32))


def is_legal(ctx: Context) -> bool:
    """An ordinary convolution between channels-last images of whole granules whose halo holds the padding."""
    node = ctx.anchor
    if node.op != "conv2d" or is_depthwise(ctx, node) or node.attrs.int("groups") != 1 or not per_channel(ctx):
        return False
    layout, out = ctx.layout(node.inputs[0]), ctx.out_layout
    padded = holds_padding(layout, node.attrs.ints("pad"), node.attrs.int("pad_value"))
    whole = layout.channels_last and out.channels_last and not layout.pixel % GRANULE and not out.pixel % GRANULE
    bytes_ = layout.dtype != "i32" and out.dtype != "i32" and ctx.kernel.epilogue is not None
    # Copies are aligned only in the arena.
    placed = ctx.program.buffers[node.inputs[0]].place == ctx.program.buffers[ctx.kernel.name].place == "arena"
    return padded and whole and bytes_ and placed


class ImplicitGemm:
    """The generator of one convolution."""

    def __init__(self, ctx: Context, tile: Tile) -> None:
        node = ctx.anchor
        self.ctx, self.b, self.tile = ctx, ctx.b, tile
        self.geometry = g = geometry_of(ctx)
        self.outputs, _, self.kh, self.kw = g.weights.shape
        self.per_pixel = g.pixel // GRANULE
        self.granules = self.kh * self.kw * self.per_pixel
        self.chunks = -(-self.granules // _PARTS)
        self.pixels = g.height * g.width
        self.across = -(-self.outputs // tile.cols)
        self.source = ctx.stored(node.inputs[0])
        packed = ctx.pack("implicit_gemm", node.const("w"), pixel=g.pixel, rows=tile.cols, chunk=CHUNK)
        self.weights = ctx.constant(packed)
        bias = node.const("b")
        size = self.across * tile.cols
        self.bias = ctx.constant(ctx.pack("vector", bias, size=size) if bias else ctx.pack("zeros", size=size))
        self.epilogue = Epilogue(ctx, ctx.kernel.epilogue, node.name)
        words = PITCH // 4
        self.words = words
        self.a = shared(self.b, "int32", _STAGES * tile.rows * words)
        self.w = shared(self.b, "int32", _STAGES * tile.cols * words)
        self.out_pitch = tile.cols + 16
        self.out = shared(self.b, "uint8", tile.rows * self.out_pitch)
        self.lane = tir.Var(LANE, "int32")
        self.block = tir.Var(BLOCK, "int32")

    def emit(self) -> Emitted:
        b, tile = self.b, self.tile
        self.first_row = b.let(self.block // self.across * tile.rows)
        self.first_col = b.let(self.block % self.across * tile.cols)
        warp, lane = b.let(self.lane // LANES), b.let(self.lane % LANES)
        self.warp_row = b.let(warp // 2 * (tile.rows // 2))
        self.warp_col = b.let(warp % 2 * (tile.cols // 2))
        self.group, self.quad = b.let(lane // 4), b.let(lane % 4)
        self.part = b.let(self.lane % _PARTS)
        self.copy_row = b.let(self.lane // _PARTS)
        self.down, self.right = tile.rows // 32, tile.cols // 16
        accs = b.local("int32", self.down * self.right * 4)
        with b.loop(self.down * self.right * 4, "unroll") as i:
            b.store(accs, i, const(0))
        rows = [self._input_row(i) for i in range(-(-tile.rows * _PARTS // THREADS))]
        self._fetch(const(0), const(0), rows)
        call(b, "q_commit")
        with b.loop(self.chunks) as chunk:
            stage = b.let(chunk % _STAGES)
            following = b.let(chunk + 1)
            with b.when(following < self.chunks):
                self._fetch(following, b.let(following % _STAGES), rows)
            # A group is committed either way, so that all but the last are always those that are needed.
            call(b, "q_commit")
            call(b, "q_wait_but_one")
            call(b, "q_sync")
            self._multiply(accs, stage)
            call(b, "q_sync")
        self._finish(accs)
        blocks = -(-self.pixels // tile.rows) * self.across
        self._fill_frame(blocks)
        emitted = self.ctx.finish()
        return Emitted(emitted.func.with_attr(BLOCKS_ATTRIBUTE, blocks), emitted.arguments)

    def _input_row(self, i: int) -> Expr:
        """Where the pixel begins that this thread copies for row `copy_row + i·THREADS/parts` of the tile."""
        g, b = self.geometry, self.b
        row = self.copy_row + i * (THREADS // _PARTS)
        # Rows behind the last pixel read it again; nothing of them is stored.
        pixel = b.let(tir.min(self.first_row + row, const(self.pixels - 1)))
        h, w = pixel // g.width, pixel % g.width
        return b.let(h * (g.stride[0] * g.row) + w * (g.stride[1] * g.pixel) + g.origin)

    def _fetch(self, chunk: Expr, stage: Expr, rows: list[Expr]) -> None:
        """Start copying a chunk of both factors."""
        b, g, tile = self.b, self.geometry, self.tile
        wanted = b.let(chunk * _PARTS + self.part)
        # Behind the last granule the weights are zero, and any bytes will do.
        granule = b.let(tir.Select(wanted < self.granules, wanted, const(0)))
        tap = b.let(granule // self.per_pixel)
        inside = tap // self.kw * (g.dilation[0] * g.row) + tap % self.kw * (g.dilation[1] * g.pixel)
        inside = b.let(inside + granule % self.per_pixel * GRANULE)
        step = THREADS // _PARTS
        word = b.let(self.part * (GRANULE // 4))
        for i, start in enumerate(rows):
            row = self.copy_row + i * step
            to = (stage * tile.rows + row) * self.words + word
            self._copy(tile.rows, i, lambda to=to, start=start: call(
                b, "q_copy16", address(b, self.a, to), address(b, self.source.buffer, start + inside)
            ))  # fmt: skip
        for i in range(-(-tile.cols * _PARTS // THREADS)):
            row = self.copy_row + i * step
            to = (stage * tile.cols + row) * self.words + word
            of = (self.first_col + row) * (self.chunks * CHUNK) + chunk * CHUNK + self.part * GRANULE
            self._copy(tile.cols, i, lambda to=to, of=of: call(
                b, "q_copy16", address(b, self.w, to), address(b, self.weights, of)
            ))  # fmt: skip

    def _copy(self, rows: int, turn: int, copy: Any) -> None:
        """Copy only where this turn's row belongs to the tile."""
        step = THREADS // _PARTS
        if (turn + 1) * step <= rows:
            copy()
            return
        with self.b.when(self.copy_row < rows - turn * step):
            copy()

    def _multiply(self, accs: Any, stage: Expr) -> None:
        b, tile, words = self.b, self.tile, self.words
        a0 = b.let((stage * tile.rows + self.warp_row + self.group) * words + self.quad)
        w0 = b.let((stage * tile.cols + self.warp_col + self.group) * words + self.quad)
        for k in range(CHUNK // 32):
            first = [
                [b.let(b.load(self.a, a0 + (m * 16 + 8 * (i % 2)) * words + k * 8 + i // 2 * 4)) for i in range(4)]
                for m in range(self.down)
            ]
            second = [
                [b.let(b.load(self.w, w0 + n * 8 * words + k * 8 + i * 4)) for i in range(2)] for n in range(self.right)
            ]
            for m in range(self.down):
                for n in range(self.right):
                    acc = address(b, accs, const((m * self.right + n) * 4))
                    call(b, "q_mma", acc, *first[m], *second[n])

    def _finish(self, accs: Any) -> None:
        """Requantize into shared memory, then store whole granules."""
        b, g, tile = self.b, self.geometry, self.tile
        for m in range(self.down):
            for half in range(2):
                row = b.let(self.warp_row + (m * 16 + half * 8) + self.group)
                pixel = b.let(tir.min(self.first_row + row, const(self.pixels - 1)))
                h, w = b.let(pixel // g.width), b.let(pixel % g.width)
                for n in range(self.right):
                    for i in range(2):
                        col = b.let(self.warp_col + n * 8 + self.quad * 2 + i)
                        # Surplus channels compute the last one again.
                        channel = b.let(tir.min(self.first_col + col, const(self.outputs - 1)))
                        acc = b.load(accs, (m * self.right + n) * 4 + half * 2 + i) + b.load(self.bias, channel)
                        value = self.epilogue.value(b.let(acc), (channel, h, w), 1)
                        b.store(self.out, row * self.out_pitch + col, cast("uint8", value))
        call(b, "q_sync")
        per_row = tile.cols // GRANULE
        total = tile.rows * per_row
        for turn in range(-(-total // THREADS)):
            index = b.let(self.lane + turn * THREADS)
            row, start = b.let(index // per_row), b.let(index % per_row * GRANULE)
            pixel, channel = b.let(self.first_row + row), b.let(self.first_col + start)
            inside = tir.all(index < total, pixel < self.pixels, channel < self.ctx.out_layout.pixel)
            with b.when(inside):
                at = self.ctx.output.address((channel, pixel // g.width, pixel % g.width))
                source = address(b, self.out, row * self.out_pitch + start)
                call(b, "q_store16", address(b, self.ctx.output.buffer, at), source)

    def _fill_frame(self, blocks: int) -> None:
        """The halo of the output, shared among all threads of the grid."""
        b, layout = self.b, self.ctx.out_layout
        if not any(layout.halo):
            return
        top, left, _, _ = layout.halo
        _, height, width = layout.shape
        per_pixel = layout.pixel // GRANULE
        total = layout.rows * layout.cols * per_pixel
        with b.loop(-(-total // (blocks * THREADS))) as turn:
            index = b.let((turn * blocks + self.block) * THREADS + self.lane)
            pixel = b.let(index // per_pixel)
            row, col = b.let(pixel // layout.cols - top), b.let(pixel % layout.cols - left)
            outside = tir.any(row < 0, row >= height, col < 0, col >= width)
            with b.when(tir.all(index < total, outside)):
                call(b, "q_fill16", address(b, self.ctx.output.buffer, index * GRANULE), const(layout.fill))


def shared(b: Builder, dtype: str, size: int) -> Any:
    """Memory of a block."""
    return b.local(dtype, size, scope="shared")


def address(b: Builder, buffer: Any, index: Expr) -> Expr:
    return tir.address_of(b.load(buffer, index))


def call(b: Builder, name: str, *arguments: Expr) -> None:
    """A call of one of the device functions of `runtime`."""
    b.evaluate(tir.call_extern("int32", name, *arguments))


def emit(ctx: Context, tile: Tile) -> Emitted:
    """The kernel of `ctx`, for which `is_legal` holds."""
    return ImplicitGemm(ctx, tile).emit()
