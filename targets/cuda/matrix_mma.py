"""Matrix products on tensor cores, requantized before they leave the block: convolutions and linear layers.

A block of four warps computes a tile of rows × columns (`tiles`).  Chunks of 64 bytes of the inner dimension pass
through shared memory in `stages`: while one is multiplied the others arrive, copied asynchronously.  (sm_75 has no
such copies: there a chunk is loaded into registers before a multiplication and stored behind it.)  One barrier a
chunk.  Rows of the first factor are gathered as `matrix`
says; the second is packed so that a tile's chunk is one run of memory.

Shared memory without conflicts: a row is 64 bytes, or 32 where weights are nibbles, that is P = 4 or 2 granules of 16
bytes, and 8/P rows fill all banks once; granule p of row r lies in place p ^ (r / (8/P) mod P).  Then the eight rows
that `ldmatrix` reads at once, and the eight granules that eight threads copy, lie in different banks.

The instruction is m16n8k32 (on sm_75 four m8n8k16): matrices of 8 rows × 16 bytes, as `ldmatrix` deals them out, are
its registers.  Weights of at most 4 bits may be stored two in a byte and become bytes in registers, multiplied by 16
so that each costs one or two logical instructions; the sum is divided by 16 at the end, exactly, because 16 times it
fits int32.  Where also inputs fit 4 bits, both may be multiplied as nibbles by m16n8k64 (m8n8k32): two registers of
bytes become one.  Inner positions i and 32 + i share a byte in both factors.

What limits it: a chunk of a tile is rows · cols · 64 multiply-adds and (rows + cols) · 64 bytes from the far cache,
so 128×128 needs 1 byte for 64 multiply-adds and is limited by the tensor cores, 32×32 needs 1 for 16 and is limited
by latency and copies; that is for layers with few outputs, whose inner dimension `splits` blocks share.
A thread of 128×128 takes 209 to 223 registers, of 128×64 122 to 150, of 64×64 79 to 100, of 32×32 48 to 56 (ptxas of
CUDA 13.0, sm_75 to sm_90), and none spills.

Where a sample has no more rows than a tile, the rows of a batch lie in tiles together: the weights are read once for
all of them.  The grid stays that of one tile a sample; blocks behind the last row have nothing to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from tvm import tirx as tir

from qcompile.ir import int_range
from targets._tvm.builder import Expr, const
from targets._tvm.context import Context, Emitted
from targets._tvm.kernels.bounds import weight_reach
from targets.cuda.block import (
    BLOCK,
    BLOCKS_ATTRIBUTE,
    FOLDED_ATTRIBUTE,
    GRANULE,
    LANE,
    LANES,
    SAMPLE,
    SAMPLES,
    THREADS,
    address,
    behind,
    call,
    fill_frame,
    over,
    rest,
    shared,
)
from targets.cuda.matrix import Matrix
from targets.cuda.matrix_store import Store
from targets.cuda.tiles import BYTES, CHUNK, NIBBLE_PRODUCTS, NIBBLES, PACKED, Form, Variant

_UPPER = -0x0F0F0F10
"""0xF0F0F0F0: the upper halves of four bytes."""
_ROWS_PER_TURN = {unit: THREADS * unit // CHUNK for unit in (4, 8, GRANULE)}
_STEPS = CHUNK // 32
"""Inner dimensions of an 8-bit instruction in a chunk."""


def forms(ctx: Context, architectures: list[str]) -> tuple[Form, ...]:
    """How the weights of a layer may be stored and multiplied on all of these architectures."""
    node = ctx.anchor
    w = ctx.const(node, "w")
    if w.size and (w.min() < -8 or w.max() > 7):
        return (BYTES,)
    highest = int_range(ctx.layout(node.inputs[0]).dtype)[1]
    found = [BYTES]
    if 16 * highest * weight_reach(w) < 1 << 31:
        found.append(PACKED)
    if highest < 16 and set(architectures) <= NIBBLE_PRODUCTS:
        found.append(NIBBLES)
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Copy:
    """What one thread copies at once.

    Attributes:
        bytes: how many.
        to: where in the block's memory.
        source, of: from where.
        wanted: conditions under which it does.
    """

    bytes: int
    to: Expr
    source: Any
    of: Expr
    wanted: list[Expr]


class MatrixKernel:
    """The generator of one product."""

    def __init__(self, ctx: Context, matrix: Matrix, variant: Variant) -> None:
        node, b = ctx.anchor, ctx.b
        self.ctx, self.b, self.matrix, self.variant, self.tile = ctx, b, matrix, variant, variant.tile
        self.shape = matrix.shape
        self.tiles = self.shape.tiles(self.tile)
        self.per_split = self.shape.per_split(variant.splits)
        self.source = ctx.stored(node.inputs[0])
        g = matrix.geometry
        self.weights = ctx.constant(ctx.pack(
            "matrix", node.const("w"), groups=g.groups, merged=matrix.merged, pixel=g.pixel, across=matrix.across,
            run=matrix.run, cols=self.tile.cols, chunk=CHUNK, nibbles=variant.form.weight_bits == 4,
        ))  # fmt: skip
        # Granules of a row of the second factor.
        self.parts = CHUNK * variant.form.weight_bits // 8 // GRANULE
        self.first_bytes, self.second_bytes = variant.stage_bytes
        self.lane, self.block = tir.Var(LANE, "int32"), tir.Var(BLOCK, "int32")
        self.store = Store(ctx, matrix, variant)
        self.folded = self.store.folded

    def emit(self) -> Emitted:
        b, tile, variant = self.b, self.tile, self.variant
        blocks = self.tiles * variant.splits
        split, number = b.let(over(self.block, self.tiles)), b.let(rest(self.block, self.tiles))
        across = self.shape.across(tile)
        row_tile = tir.Var(SAMPLE, "int32") if self.folded else over(number, across)
        self.first_row = b.let(row_tile * tile.rows)
        self.all_rows = const(self.matrix.rows)
        if self.folded:
            self.all_rows = b.let(tir.Var(SAMPLES, "int32") * self.matrix.rows)
        self.weight_tile = b.let(rest(number, across))
        warp, lane = b.let(over(self.lane, LANES)), b.let(rest(self.lane, LANES))
        beside = THREADS // LANES // tile.down
        warp_row, warp_col = b.let(over(warp, beside) * tile.warp_rows), b.let(rest(warp, beside) * tile.warp_cols)
        self.down, self.right = tile.warp_rows // 16, tile.warp_cols // 8
        self.memory = shared(b, "uint8", self.store.bytes)
        self.accs = b.local("int32", self.down * self.right * 4)
        registers = 4 * _STEPS if variant.form.nibbles else 4
        self.first = b.local("int32", self.down * registers)
        self.second = b.local("int32", self.right * 2)
        first, second = -(-tile.rows // _ROWS_PER_TURN[self.matrix.unit]), -(-self.second_bytes // (THREADS * GRANULE))
        self.held = b.local("int32", (first * self.matrix.unit + second * GRANULE) // 4)
        with b.loop(self.down * self.right * 4, "unroll") as i:
            b.store(self.accs, i, const(0))
        self.whole = None
        if variant.splits > 1:
            self.whole = b.let(tir.Var(SAMPLES, "int32") >= variant.splits)
        # All samples together may have fewer tiles than each its own, and many samples need no splits.
        wanted = [self.first_row < self.all_rows] if self.folded else []
        wanted += [] if self.whole is None else [tir.any(split < 1, tir.Not(self.whole))]
        with b.when(tir.all(*wanted)) if wanted else nullcontext():
            self._plan_copies()
            self._plan_fragments(warp_row, warp_col, lane)
            self._pipeline(split)
            self.store.emit(self, number, split, warp_row, warp_col)
        if self.ctx.out_layout.channels_last:
            fill_frame(self.ctx, blocks, folded=self.folded)
        emitted = self.ctx.finish()
        func = emitted.func.with_attr(BLOCKS_ATTRIBUTE, blocks)
        return Emitted(func.with_attr(FOLDED_ATTRIBUTE, 1) if self.folded else func, emitted.arguments)

    def _pipeline(self, split: Expr) -> None:
        b, ahead, chunks = self.b, self.tile.stages - 1, self.shape.chunks
        turns, first, last = const(chunks), const(0), const(chunks)
        if self.whole is not None:
            turns = b.let(tir.Select(self.whole, const(chunks), const(self.per_split)))
            first = b.let(split * turns)
            last = b.let(tir.min(first + turns, const(chunks)))
        # Only the last split may have fewer chunks than the others.
        exact = self.per_split * self.variant.splits == chunks
        self.store.begin(self)
        for i in range(ahead):
            if i < chunks:
                with b.when(first + i < last):
                    self._fetch(b.let(first + i), const(i))
                    self._land(b.let(first + i), const(i))
            call(b, "q_commit")
        with b.loop(turns) as i:
            chunk = b.let(first + i)
            # A group is committed in every turn, so that the oldest of them is always the chunk that is needed.
            call(b, f"q_wait{ahead - 1}")
            # Behind it the chunk is there for all threads, and all are done with the stage that is filled next.
            call(b, "q_sync")
            following = b.let(chunk + ahead)
            filled = b.let(rest(i + ahead, self.tile.stages))
            with b.when(following < last):
                self._fetch(following, filled)
            call(b, "q_commit")
            stage = b.let(rest(i, self.tile.stages))
            if exact:
                self._multiply(stage)
            else:
                with b.when(chunk < last):
                    self._multiply(stage)
            with b.when(following < last):
                self._land(following, filled)

    def _plan_copies(self) -> None:
        """What a thread copies: the same part of every so many rows."""
        b, m, tile = self.b, self.matrix, self.tile
        self.per_row = CHUNK // m.unit
        self.part, self.copy_row = b.let(rest(self.lane, self.per_row)), b.let(over(self.lane, self.per_row))
        step = _ROWS_PER_TURN[m.unit]
        product = over(self.weight_tile, self.shape.across(tile) // m.groups)
        offset = b.let(product * m.group_bytes) if m.groups > 1 else const(0)
        self.rows = []
        for turn in range(-(-tile.rows // step)):
            # Behind the last row nothing is copied, and of what is there instead nothing is stored.
            row = b.let(tir.min(self.first_row + self.copy_row + turn * step, self.all_rows - 1))
            start = m.start(rest(row, m.rows) if self.folded else row) + offset
            if self.folded:
                start = behind(self.source.buffer, over(row, m.rows), start)
            self.rows.append(b.let(start))
        place = over(self.part, GRANULE // m.unit) ^ rest(over(self.copy_row, 2), 4)
        self.first_to = b.let(self.copy_row * CHUNK + place * GRANULE + rest(self.part, GRANULE // m.unit) * m.unit)
        part, row = rest(self.lane, self.parts), over(self.lane, self.parts)
        place = part ^ rest(over(row, 8 // self.parts), self.parts)
        self.second_to = b.let((row * self.parts + place) * GRANULE)

    def _copies(self, chunk: Expr, stage: Expr) -> Iterator[Copy]:
        """Of a chunk of both factors."""
        b, m, tile = self.b, self.matrix, self.tile
        unit = b.let(chunk * self.per_row + self.part)
        inside = b.let(m.inside(unit))
        step = _ROWS_PER_TURN[m.unit]
        whole = not m.inner % CHUNK
        for turn, start in enumerate(self.rows):
            # Behind the last unit the weights are zeros, and any bytes will do.
            wanted = [] if whole else [unit < m.inner // m.unit]
            if (turn + 1) * step > tile.rows:
                wanted.append(self.copy_row < tile.rows - turn * step)
            if m.rows % tile.rows or self.folded:
                wanted.append(self.first_row + self.copy_row + turn * step < self.all_rows)
            to = stage * self.first_bytes + turn * step * CHUNK + self.first_to
            yield Copy(m.unit, to, self.source.buffer, start + inside, wanted)
        begin = b.let((self.weight_tile * self.shape.chunks + chunk) * self.second_bytes + self.lane * GRANULE)
        to = b.let(tile.stages * self.first_bytes + stage * self.second_bytes + self.second_to)
        turn_bytes = THREADS * GRANULE
        for turn in range(-(-self.second_bytes // turn_bytes)):
            left = self.second_bytes - turn * turn_bytes
            wanted = [] if left >= turn_bytes else [self.lane < left // GRANULE]
            yield Copy(GRANULE, to + turn * turn_bytes, self.weights, begin + turn * turn_bytes, wanted)

    def _fetch(self, chunk: Expr, stage: Expr) -> None:
        """Start copying a chunk of both factors."""
        self._each_copy(chunk, stage, lambda copy, held: call(
            self.b, f"q_fetch{copy.bytes}", held, address(self.b, self.memory, copy.to),
            address(self.b, copy.source, copy.of),
        ))  # fmt: skip

    def _land(self, chunk: Expr, stage: Expr) -> None:
        """Where copies are not asynchronous, what was fetched is in registers until now."""
        self._each_copy(chunk, stage, lambda copy, held: call(
            self.b, f"q_land{copy.bytes}", address(self.b, self.memory, copy.to), held
        ))  # fmt: skip

    def _each_copy(self, chunk: Expr, stage: Expr, visit: Callable[[Copy, Expr], None]) -> None:
        place = 0
        for copy in self._copies(chunk, stage):
            with self.b.when(tir.all(*copy.wanted)) if copy.wanted else nullcontext():
                visit(copy, address(self.b, self.held, const(place)))
            place += copy.bytes // 4

    def _plan_fragments(self, warp_row: Expr, warp_col: Expr, lane: Expr) -> None:
        """Which row's granule each lane names in a matrix load: lane 8i + j names row j of matrix i."""
        b, base = self.b, self.tile.stages * self.first_bytes
        # Matrices: rows 0 to 7, rows 8 to 15, and both again 16 bytes on.
        row = b.let(warp_row + rest(lane, 16))
        place = b.let(over(lane, 16) ^ rest(over(lane, 2), 4))
        # Two granules on is place ^ 2.
        self.first_from = [b.let(row * CHUNK + (place ^ 2 * k) * GRANULE) for k in range(_STEPS)]
        # Matrices: columns 0 to 7, these 16 bytes on, and columns 8 to 15 likewise.
        row, half = b.let(warp_col + rest(lane, 8) + over(lane, 16) * 8), b.let(rest(over(lane, 8), 2))
        place = b.let(half ^ rest(over(rest(lane, 8), 8 // self.parts), self.parts))
        pitch = self.parts * GRANULE
        steps = self.parts // 2
        self.second_from = [b.let(row * pitch + (place ^ 2 * k) * GRANULE + base) for k in range(steps)]

    def _load_first(self, stage: Expr, step: int, to: int) -> None:
        """Registers 4·(m·to + …) of all rows of the warp."""
        b = self.b
        start = b.let(stage * self.first_bytes + self.first_from[step])
        for m in range(self.down):
            at = address(b, self.memory, start + m * 16 * CHUNK)
            call(b, "q_ldmatrix4", address(b, self.first, const((m * to + (step if to > 1 else 0)) * 4)), at)

    def _load_second(self, stage: Expr, step: int) -> None:
        b = self.b
        start = b.let(stage * self.second_bytes + self.second_from[step])
        for n in range(0, self.right, 2):
            at = address(b, self.memory, start + n * 8 * self.parts * GRANULE)
            call(b, "q_ldmatrix4", address(b, self.second, const(n * 2)), at)

    def _multiply(self, stage: Expr) -> None:
        form = self.variant.form
        if form.nibbles:
            self._multiply_nibbles(stage)
            return
        for step in range(_STEPS):
            self._load_first(stage, step, 1)
            if form.weight_bits == 8 or step == 0:
                self._load_second(stage, step)
            second = [[self._second(n, i, step) for i in range(2)] for n in range(self.right)]
            for m in range(self.down):
                first = [self.b.load(self.first, m * 4 + i) for i in range(4)]
                for n in range(self.right):
                    self._product("q_mma", m, n, first, second[n])

    def _second(self, n: int, i: int, step: int) -> Expr:
        """A register of weights as bytes; of packed ones, 16 times as large."""
        word = self.b.load(self.second, n * 2 + i)
        if self.variant.form.weight_bits == 8:
            return word
        return self.b.let((word << const(4) if step == 0 else word) & const(_UPPER))

    def _multiply_nibbles(self, stage: Expr) -> None:
        b = self.b
        for step in range(_STEPS):
            self._load_first(stage, step, _STEPS)
        self._load_second(stage, 0)
        second = [[b.load(self.second, n * 2 + i) for i in range(2)] for n in range(self.right)]
        for m in range(self.down):
            low = [b.load(self.first, m * 8 + i) for i in range(4)]
            high = [b.load(self.first, m * 8 + 4 + i) for i in range(4)]
            first = [b.let(x | y << const(4)) for x, y in zip(low, high, strict=True)]
            for n in range(self.right):
                self._product("q_mma_s4", m, n, first, second[n])

    def _product(self, name: str, m: int, n: int, first: list[Expr], second: list[Expr]) -> None:
        call(self.b, name, address(self.b, self.accs, const((m * self.right + n) * 4)), *first, *second)


def emit(ctx: Context, matrix: Matrix, variant: Variant) -> Emitted:
    """The kernel of `ctx`, which is this product."""
    return MatrixKernel(ctx, matrix, variant).emit()
