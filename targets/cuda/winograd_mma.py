"""Exact Winograd convolution F(2×2, 3×3) on 8-bit tensor cores: 16 matrix products instead of 36, the same bits.

Which convolutions, and why the integers are the same, is proved in `targets._tvm.kernels.winograd`.  A block
transforms the inputs of `rows` 4×4 tiles, 32 channels at a time, into shared memory, where the transformed weights
of `cols` output channels arrive asynchronously, and multiplies them position by position.  A warp holds all 16
positions of its 16 tiles × 8 or 16 channels in registers, in the layout of m16n8k32 (see `matrix_mma`), so products are
transformed back and requantized by the thread that made them.

Inputs are transformed four channels at a time: a word is split into its even and its odd bytes, as two 16-bit fields
each.  A sum of fields is exact as a sum of integers lo + 2^16·hi of either sign, and what is stored has its offset
added, which makes both fields bytes again.

A row of a factor is 32 bytes in shared memory; the halves of rows 4 to 7 of every 8 change places, so that the words of
a matrix of 8 rows of 16 bytes lie in 32 banks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx as tir

from targets._tvm.builder import Expr, cast, const
from targets._tvm.context import Context, Emitted
from targets._tvm.kernels import winograd
from targets._tvm.kernels.epilogue import Epilogue
from targets._tvm.kernels.winograd_form import F2
from targets._tvm.packing import WINOGRAD_OFFSET
from targets.cuda.block import (
    BLOCK,
    BLOCKS_ATTRIBUTE,
    GRANULE,
    LANE,
    LANES,
    THREADS,
    WARPS,
    address,
    call,
    fill_frame,
    shared,
)  # fmt: skip
from targets.cuda.device import EVEN, ODD, interleave, permute, value_of, word_at

_FORM = F2
_POSITIONS = _FORM.alpha * _FORM.alpha
_OUTPUTS = _FORM.m * _FORM.m
_CHUNK = 32
"""Input channels, and bytes of a row, in shared memory at a time."""
_WORDS = _CHUNK // 4
_TURN = THREADS // _WORDS
"""Rows that the threads of a block transform at a time."""
_STAGES = 2
_M, _N = 16, 8
"""Rows and columns of one instruction."""


@dataclass(frozen=True, slots=True)
class Tile:
    """What one block computes.

    Attributes:
        down: warps below each other, each 16 tiles of outputs high; the others are beside each other.
        right: instructions of a warp beside each other, each 8 channels wide.
    """

    down: int
    right: int

    @property
    def rows(self) -> int:
        """Tiles of 2×2 outputs."""
        return self.down * _M

    @property
    def cols(self) -> int:
        """Output channels."""
        return WARPS // self.down * self.right * _N

    @property
    def name(self) -> str:
        return f"winograd-{_FORM.m}-mma-{self.rows}x{self.cols}"


TILES = (Tile(2, 2), Tile(2, 1), Tile(1, 1))


def is_legal(ctx: Context) -> bool:
    """Where the Winograd form is proved exact, on images of whole granules, from bytes to bytes."""
    if ctx.anchor.op != "conv2d" or not winograd.is_legal(ctx, _FORM):
        return False
    layout, out = ctx.layout(ctx.anchor.inputs[0]), ctx.out_layout
    return not (layout.pixel % GRANULE or out.pixel % GRANULE) and out.dtype != "i32"


class WinogradMma:
    """The generator of one convolution."""

    def __init__(self, ctx: Context, tile: Tile) -> None:
        node = ctx.anchor
        self.ctx, self.b, self.tile = ctx, ctx.b, tile
        w = ctx.const(node, "w")
        self.outputs = int(w.shape[0])
        self.source = ctx.stored(node.inputs[0])
        layout, (_, self.height, self.width) = self.source.layout, ctx.out_layout.shape
        self.chunks = -(-w.shape[1] // _CHUNK)
        self.beside = -(-self.width // _FORM.m)
        self.tiles = -(-self.height // _FORM.m) * self.beside
        self.across = -(-self.outputs // tile.cols)
        pad = node.attrs.ints("pad")
        self.shift = (layout.halo[0] - pad[0], layout.halo[1] - pad[1])
        # One output channel after the other, the bytes of a position consecutive.
        packed = ctx.pack("winograd_weights", node.const("w"), m=_FORM.m, lanes=1, width=self.chunks * _CHUNK,
                          dtype=_FORM.weights)  # fmt: skip
        self.weights = ctx.constant(packed)
        self.start = ctx.constant(ctx.pack("winograd_start", node.const("w"), node.const("b"), m=_FORM.m, lanes=1))
        self.epilogue = Epilogue(ctx, ctx.kernel.epilogue, node.name, _FORM.anchor_bits)
        self.v = shared(self.b, "int32", _POSITIONS * tile.rows * _WORDS)
        self.u = shared(self.b, "int32", _STAGES * _POSITIONS * tile.cols * _WORDS)
        self.lane, self.block = tir.Var(LANE, "int32"), tir.Var(BLOCK, "int32")

    def emit(self) -> Emitted:
        b, tile = self.b, self.tile
        self.first_tile = b.let(self.block // self.across * tile.rows)
        self.first_col = b.let(self.block % self.across * tile.cols)
        warp, lane = b.let(self.lane // LANES), b.let(self.lane % LANES)
        beside = WARPS // tile.down
        self.warp_row = b.let(warp // beside * _M)
        self.warp_col = b.let(warp % beside * (tile.right * _N))
        self.part, self.group, self.quad = lane, b.let(lane // 4), b.let(lane % 4)
        accs = self._start()
        turns = tile.rows * _WORDS // THREADS
        self.words = b.local("int32", turns * _POSITIONS)
        pixels = [self._tile_pixels(turn) for turn in range(turns)]
        # Registers for the inputs of one turn are left beside twice as many accumulators.
        ahead = turns if tile.right == 1 else 1
        self._load(const(0), pixels, range(ahead))
        self._fetch(const(0), const(0))
        call(b, "q_commit")
        with b.loop(self.chunks) as chunk:
            stage, following = b.let(chunk % _STAGES), b.let(chunk + 1)
            for turn in range(turns):
                if turn >= ahead:
                    self._load(chunk, pixels, range(turn, turn + 1))
                self._transform(turn)
            with b.when(following < self.chunks):
                self._fetch(following, b.let(following % _STAGES))
            call(b, "q_commit")
            call(b, "q_wait1")
            call(b, "q_sync")
            with b.when(following < self.chunks):
                self._load(following, pixels, range(ahead))
            self._multiply(accs, stage)
            call(b, "q_sync")
        self._finish(accs)
        blocks = -(-self.tiles // tile.rows) * self.across
        fill_frame(self.ctx, blocks)
        emitted = self.ctx.finish()
        return Emitted(emitted.func.with_attr(BLOCKS_ATTRIBUTE, blocks), emitted.arguments)

    def _start(self) -> Any:
        """The accumulators, which begin with what undoes the offset and adds the bias."""
        b, right = self.b, self.tile.right
        accs = b.local("int32", _POSITIONS * right * 4)
        for n in range(right):
            for i in range(2):
                channel = b.let(self._channel(n, i))
                for position in range(_POSITIONS):
                    start = b.let(b.load(self.start, channel + position * self.outputs))
                    for half in range(2):
                        b.store(accs, (position * right + n) * 4 + half * 2 + i, start)
        return accs

    def _channel(self, n: int, i: int) -> Expr:
        """The output channel of accumulator i of instruction n; surplus ones compute the last one again."""
        channel = self.first_col + self.warp_col + self.quad * 2 + (n * _N + i)
        return tir.min(channel, const(self.outputs - 1))

    def _place(self, tile: Expr) -> tuple[Expr, Expr]:
        """Row and column of the first output of a tile."""
        return tile // self.beside * _FORM.m, tile % self.beside * _FORM.m

    def _tile_pixels(self, turn: int) -> list[Expr]:
        """Where the 16 pixels begin that this thread transforms in this turn."""
        b, layout = self.b, self.source.layout
        # Tiles behind the last one read it again; nothing of them is stored.
        tile = self.first_tile + self.lane // _WORDS + turn * _TURN
        tile = b.let(tir.min(tile, const(self.tiles - 1)))
        row, col = self._place(tile)
        top, left = b.let(row + self.shift[0]), b.let(col + self.shift[1])
        row_bytes = layout.cols * layout.pixel
        if self.height % _FORM.m == self.width % _FORM.m == 0:
            first = b.let(top * row_bytes + left * layout.pixel)
            return [first + (i * row_bytes + j * layout.pixel) for i in range(_FORM.alpha) for j in range(_FORM.alpha)]
        # The last rows and columns of a tile that sticks out feed only outputs that are not stored.
        rows = [b.let(tir.min(top + i, const(layout.rows - 1)) * row_bytes) for i in range(_FORM.alpha)]
        cols = [b.let(tir.min(left + j, const(layout.cols - 1)) * layout.pixel) for j in range(_FORM.alpha)]
        return [row + col for row in rows for col in cols]

    def _load(self, chunk: Expr, pixels: list[list[Expr]], turns: range) -> None:
        """The words of a chunk that this thread transforms in some turns, into registers."""
        b, pixel = self.b, self.source.layout.pixel
        channel = chunk * _CHUNK + self.lane % _WORDS * 4
        if pixel % _CHUNK:
            # Behind the last channel the weights are zero, and any bytes will do.
            channel = tir.Select(channel < pixel, channel, const(0))
        channel = b.let(channel)
        for turn in turns:
            for i, start in enumerate(pixels[turn]):
                b.store(self.words, turn * _POSITIONS + i, word_at(b, self.source.buffer, start + channel))

    def _transform(self, turn: int) -> None:
        """Four channels of a tile, from registers to every position's row in shared memory."""
        b, alpha = self.b, _FORM.alpha
        halves = []
        for which in (EVEN, ODD):
            columns = []
            for c in range(alpha):
                taken = [b.load(self.words, turn * _POSITIONS + r * alpha + c) for r in range(alpha)]
                pixels = [b.let(permute(word, const(0), which)) for word in taken]
                columns.append([b.let(v) for v in _FORM.inputs(pixels)])
            halves.append([b.let(v) for r in range(alpha) for v in _FORM.inputs([column[r] for column in columns])])
        row, word = b.let(self.lane // _WORDS), b.let(self.lane % _WORDS)
        first = b.let(row * _WORDS + (word + row // 4 % 2 * 4) % _WORDS + turn * (_TURN * _WORDS))
        offset = const(WINOGRAD_OFFSET | WINOGRAD_OFFSET << 16)
        for position, fields in enumerate(zip(*halves, strict=True)):
            even, odd = fields if position == alpha + 1 else (field + offset for field in fields)
            b.store(self.v, first + position * (self.tile.rows * _WORDS), interleave(even, odd))

    def _fetch(self, chunk: Expr, stage: Expr) -> None:
        """Start copying a chunk of the weights."""
        b, cols = self.b, self.tile.cols
        parts = _CHUNK // GRANULE
        width, together = self.chunks * _CHUNK, THREADS // (parts * cols)
        part, col, position = b.let(self.lane % parts), b.let(self.lane // parts % cols), self.lane // (parts * cols)
        to = ((stage * _POSITIONS + position) * cols + col) * _WORDS + (part + col // 4) % parts * (GRANULE // 4)
        channel = tir.min(self.first_col + col, const(self.outputs - 1))
        of = (channel * _POSITIONS + position) * width + chunk * _CHUNK + part * GRANULE
        to, of = b.let(to), b.let(of)
        for turn in range(_POSITIONS // together):
            source = address(b, self.weights, of + turn * (together * width))
            call(b, "q_copy16", address(b, self.u, to + turn * (together * cols * _WORDS)), source)

    def _multiply(self, accs: Any, stage: Expr) -> None:
        b, tile, right = self.b, self.tile, self.tile.right
        # Which row of 16 bytes this thread names of the four matrices that a warp loads together: of the first factor
        # upper and lower rows, then their other halves; of the second both halves, then those of the next 8 channels,
        # or of the next position.
        matrix, row = b.let(self.part // 8), b.let(self.part % 8)
        swapped = row // 4 % 2
        upper, half = matrix % 2, matrix // 2
        a0 = b.let((self.warp_row + upper * 8 + row) * _WORDS + (half + swapped) % 2 * 4)
        beside = half * _N if right > 1 else half * tile.cols
        w0 = stage * (_POSITIONS * tile.cols) + self.warp_col + beside + row
        w0 = b.let(w0 * _WORDS + (upper + swapped) % 2 * 4)
        step = 2 // right
        for position in range(_POSITIONS):
            first = self._matrices(self.v, a0 + position * (tile.rows * _WORDS))
            if position % step == 0:
                seconds = self._matrices(self.u, w0 + position * (tile.cols * _WORDS))
            for n in range(right):
                start = (position % step + n) * 2
                acc = address(b, accs, const((position * right + n) * 4))
                call(b, "q_mma", acc, *first, *seconds[start : start + 2])

    def _matrices(self, buffer: Any, row: Expr) -> list[Expr]:
        """This thread's word of each of four matrices."""
        b = self.b
        words = b.local("int32", 4)
        call(b, "q_ldmatrix4", address(b, words, const(0)), address(b, buffer, row))
        return [b.load(words, i) for i in range(4)]

    def _finish(self, accs: Any) -> None:
        """Transform back and requantize into shared memory, then store whole granules."""
        b, right = self.b, self.tile.right
        pitch = self.tile.cols // 4 + GRANULE // 4
        odd = b.let(self.quad % 2)
        for n in range(right):
            halves = []
            for half in range(2):
                tile = b.let(tir.min(self.first_tile + self.warp_row + self.group + half * 8, const(self.tiles - 1)))
                channels = [self._back(accs, n, half, i, tile) for i in range(2)]
                pairs = zip(*channels, strict=True)
                halves.append([b.let(tir.bitwise_or(one, tir.shift_left(two, const(8)))) for one, two in pairs])
            row = b.let(self.warp_row + self.group + odd * 8)
            col = b.let(self.warp_col // 4 + n * (_N // 4) + self.quad // 2)
            for output, (upper, lower) in enumerate(zip(*halves, strict=True)):
                # A pair of neighbours exchanges two channels each: one then has four of the upper tile, the other
                # four of the lower one.
                given = b.let(tir.Select(odd > 0, upper, lower))
                taken = b.let(value_of("q_swap", given))
                left, above = tir.Select(odd > 0, taken, upper), tir.Select(odd > 0, lower, taken)
                word = tir.bitwise_or(left, tir.shift_left(above, const(16)))
                b.store(self.v, (row + output * self.tile.rows) * pitch + col, word)
        call(b, "q_sync")
        self._store(pitch)

    def _back(self, accs: Any, n: int, half: int, i: int, tile: Expr) -> list[Expr]:
        """The requantized outputs of a tile in one channel, int32."""
        b, alpha, right = self.b, _FORM.alpha, self.tile.right
        row, col = (b.let(v) for v in self._place(tile))
        channel = b.let(self._channel(n, i))
        columns = []
        for c in range(alpha):
            column = [b.load(accs, ((r * alpha + c) * right + n) * 4 + half * 2 + i) for r in range(alpha)]
            columns.append([b.let(v) for v in _FORM.outputs(column)])
        found = []
        for r in range(_FORM.m):
            for c, acc in enumerate(_FORM.outputs([column[r] for column in columns])):
                # What an output outside of the image would add is never stored, but must not be read.
                y = tir.min(row + r, const(self.height - 1)) if self.height % _FORM.m else row + r
                x = tir.min(col + c, const(self.width - 1)) if self.width % _FORM.m else col + c
                found.append(b.let(cast("int32", self.epilogue.value(b.let(acc), (channel, y, x), 1))))
        return found

    def _store(self, pitch: int) -> None:
        b, tile = self.b, self.tile
        per_row = tile.cols // GRANULE
        total = tile.rows * _OUTPUTS * per_row
        for turn in range(-(-total // THREADS)):
            index = b.let(self.lane + turn * THREADS)
            line, start = b.let(index // per_row), b.let(index % per_row * GRANULE)
            number, channel = b.let(self.first_tile + line % tile.rows), b.let(self.first_col + start)
            (row, col), output = self._place(number), b.let(line // tile.rows)
            y, x = b.let(row + output // _FORM.m), b.let(col + output % _FORM.m)
            inside = tir.all(
                index < total, number < self.tiles, y < self.height, x < self.width,
                channel < self.ctx.out_layout.pixel,
            )  # fmt: skip
            with b.when(inside):
                to = address(b, self.ctx.output.buffer, self.ctx.output.address((channel, y, x)))
                call(b, "q_store16", to, address(b, self.v, line * pitch + start // 4))


def emit(ctx: Context, tile: Tile) -> Emitted:
    """The kernel of `ctx`, for which `is_legal` holds."""
    return WinogradMma(ctx, tile).emit()
