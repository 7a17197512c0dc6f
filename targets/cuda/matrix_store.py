"""The end of a matrix kernel: sums of several blocks added, requantized, and stored.

Bytes go through shared memory, over what the pipeline used, so that they reach memory in runs of up to 16; the value
that a residual addition reads comes in the same way, into the very bytes where the result will lie.  Granules of rows
change places as in the pipeline, so that neither pairs of bytes nor granules meet in a bank.  Wide results
are stored by the threads that hold them: four neighbours hold 32 bytes of a row.

Where blocks share an inner dimension, each stores its sums in the order of its registers and arrives at its tile's
counter; the last one adds the others' sums to its own.  Integers wrap, so the order of additions does not matter.
Where there are as many samples as splits, nothing is shared: the first split does all, the others nothing.
A byte's requantization is one multiplication of 32 × 32 → 64 bits, an addition to its upper half, a shift, and the
addition of the zero point and two comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from tvm import tirx as tir

from targets._tvm.builder import Expr, cast, const
from targets._tvm.context import Context
from targets._tvm.kernels.epilogue import Epilogue
from targets.cuda.block import GRANULE, LANES, SAMPLE, THREADS, address, behind, call, over, rest, shared
from targets.cuda.device import word_at
from targets.cuda.matrix import Matrix, alignment, item_bytes, output_coords
from targets.cuda.tiles import PACKED, Variant

if TYPE_CHECKING:
    from targets.cuda.matrix_mma import MatrixKernel

_WORD = 4
_FRAGMENT = 4 * THREADS
"""Sums that the threads of a block hold in four registers each."""


class _Column:
    """A constant of the requant: one number, or one of a column's in shared memory."""

    def __init__(self, store: Store, constant: str) -> None:
        array = store.ctx.program.graph.consts[constant]
        self._store = store
        self._number = int(array.reshape(-1)[0]) if array.size == 1 else None
        self._slot = store.add_table("columns", constant) if self._number is None else 0

    def at(self, coords: Sequence[Expr], lanes: int) -> Expr:
        return self._store.parameter(self._slot) if self._number is None else const(self._number)


def _uncut(value: Expr) -> Expr:
    """A byte as the int32 it was before it became one."""
    wide = value.value if isinstance(value, tir.Cast) else value
    return cast("int32", wide)


class Store:
    """What follows the multiplications of a block."""

    def __init__(self, ctx: Context, matrix: Matrix, variant: Variant) -> None:
        node = ctx.anchor
        self.ctx, self.b, self.matrix, self.variant, self.tile = ctx, ctx.b, matrix, variant, variant.tile
        self.granules = self.tile.cols // GRANULE
        channels_last = ctx.out_layout.channels_last
        # Columns of a product with room in memory.
        self.room = matrix.geometry.room if matrix.groups == 1 else matrix.cols
        near = ctx.out_layout.pixel if channels_last else ctx.out_layout.shape[-1]
        self.unit = math.gcd(GRANULE, near * item_bytes(ctx), alignment(ctx, ctx.kernel.name))
        self.staged = item_bytes(ctx) == 1 and self.unit >= 4
        self.residual = self._residual()
        self._tables: list[Any] = []
        self._loaded: dict[int, Expr] = {}
        bias = node.const("b")
        self._bias = self.add_table("columns", bias) if bias else None
        self.epilogue = Epilogue(
            ctx, ctx.kernel.epilogue, node.name, table=lambda constant: _Column(self, constant), read=self._read
        )
        # Values that the requant reads elsewhere than in the block are those of one sample.
        self.folded = matrix.rows <= self.tile.rows and set(self.epilogue.terms) <= {self.residual}
        self._place()
        if variant.splits > 1:
            self.tiles = matrix.shape.tiles(self.tile)
            size = self.tiles * variant.splits * self.tile.rows * self.tile.cols
            self.sums = ctx.scratch("int32", size)
            self.counters = ctx.scratch("int32", self.tiles, zeroed=True)
            self.ticket = shared(ctx.b, "int32", 1)

    def _place(self) -> None:
        """Where in shared memory the parameters and the residual values arrive: behind the pipeline, while it runs,
        or where there is no room, and of blocks of which one does it for all, when it is done."""
        room, staging = self.variant.room, self.tile.rows * self.tile.cols if self.staged else 0
        size = len(self._tables) * self.tile.cols * _WORD
        used = self.variant.shared_bytes
        self._early_tables = used + size <= room
        self._tables_at = used if self._early_tables else staging
        used = max(used, self._tables_at + size)
        self._early_residual = self.residual is not None and self.variant.splits == 1 and used + staging <= room
        self._staging_at = used if self._early_residual else 0
        self.bytes = max(used, self._staging_at + staging)

    def add_table(self, recipe: str, constant: str) -> int:
        """A slot for one of the parameters that are numbers of columns."""
        shape, m = self.matrix.shape, self.matrix
        size = (m.groups - 1) * m.cols + shape.across(self.tile) // m.groups * self.tile.cols
        self._tables.append(self.ctx.constant(self.ctx.pack(recipe, constant, size=size)))
        return len(self._tables) - 1

    def parameter(self, slot: int) -> Expr:
        """The number of the column at hand."""
        if slot not in self._loaded:
            at = self._tables_at + slot * self.tile.cols * _WORD
            self._loaded[slot] = self.b.let(word_at(self.b, self.memory, self._col * _WORD + at))
        return self._loaded[slot]

    def _residual(self) -> str | None:
        """The value a residual addition reads, where it lies exactly as the output does and can be copied."""
        ctx, out = self.ctx, self.ctx.out_layout
        for value in ctx.kernel.epilogue.inputs if ctx.kernel.epilogue and self.staged else ():
            layout = ctx.layout(value) if value in ctx.program.buffers else None
            if value == ctx.anchor.name or layout is None or layout.shape != out.shape or layout.dtype == "i32":
                continue
            if layout.pixel == out.pixel and alignment(ctx, value) % self.unit == 0:
                return value
        return None

    def _read(self, value: str, coords: Sequence[Expr], lanes: int) -> Expr | None:
        return self.b.load(self.memory, self._here) if value == self.residual else None

    def begin(self, kernel: MatrixKernel) -> None:
        """Start copying what the end needs; behind the first chunk's barrier it is there."""
        b, m = self.b, self.matrix
        self.memory = kernel.memory
        self.lane, self.first_row, self.all_rows = kernel.lane, kernel.first_row, kernel.all_rows
        per_product = kernel.shape.across(self.tile) // m.groups
        self.first_col = b.let(rest(kernel.weight_tile, per_product) * self.tile.cols)
        self.first_channel = b.let(over(kernel.weight_tile, per_product) * m.cols) if m.groups > 1 else const(0)
        if self._early_tables:
            self._fetch_tables()
        if self._early_residual:
            self._each_unit(self._fetch_residual)

    def _fetch_tables(self) -> None:
        if not self._tables:
            return
        b, per_table = self.b, self.tile.cols * _WORD // GRANULE
        first = b.let(self.first_channel + self.first_col + self.lane * (GRANULE // _WORD))
        with b.when(self.lane < per_table):
            for slot, table in enumerate(self._tables):
                to = self._tables_at + slot * self.tile.cols * _WORD + self.lane * GRANULE
                call(b, "q_copy16", address(b, self.memory, to), address(b, table, first))

    def emit(self, kernel: MatrixKernel, number: Expr, split: Expr, warp_row: Expr, warp_col: Expr) -> None:
        """Requantize and store the sums of `kernel`; `number` is its tile's."""
        b = self.b
        if self.variant.splits == 1:
            self._finish(kernel, warp_row, warp_col)
            return
        fragments = kernel.down * kernel.right
        last = const(self.variant.splits - 1)
        with b.when(tir.Not(kernel.whole)):
            self._arrive(kernel, number, split, fragments)
        with b.when(tir.any(kernel.whole, tir.EQ(b.load(self.ticket, 0), last))):
            with b.when(tir.Not(kernel.whole)):
                call(b, "q_fence")
                with b.loop(self.variant.splits) as other, b.when(tir.NE(other, split)):
                    start = b.let((other * self.tiles + number) * fragments)
                    for i in range(fragments):
                        of = address(b, self.sums, self._mine(self.sums, (start + i) * _FRAGMENT + self.lane * 4))
                        call(b, "q_add4", address(b, kernel.accs, const(4 * i)), of)
            self._finish(kernel, warp_row, warp_col)

    def _arrive(self, kernel: MatrixKernel, number: Expr, split: Expr, fragments: int) -> None:
        """Leave the block's sums for the last one to come, and a ticket that says which that is."""
        b = self.b
        own = b.let((split * self.tiles + number) * fragments)
        for i in range(fragments):
            to = address(b, self.sums, self._mine(self.sums, (own + i) * _FRAGMENT + self.lane * 4))
            call(b, "q_put4", to, address(b, kernel.accs, const(4 * i)))
        # Every thread's sums are out before its block's arrival is.
        call(b, "q_fence")
        call(b, "q_sync")
        with b.when(self.lane < 1):
            counter = address(b, self.counters, self._mine(self.counters, number))
            ticket = address(b, self.ticket, const(0))
            call(b, "q_arrive", counter, const(self.variant.splits - 1), ticket)
        call(b, "q_sync")

    def _mine(self, buffer: Any, index: Expr) -> Expr:
        """Of the memory for all tiles of a sample, or for a tile of all samples."""
        return behind(buffer, tir.Var(SAMPLE, "int32"), index) if self.folded else index

    def _finish(self, kernel: MatrixKernel, warp_row: Expr, warp_col: Expr) -> None:
        b = self.b
        late_residual = self.residual is not None and not self._early_residual
        late_tables = bool(self._tables) and not self._early_tables
        if (self.staged and not self._staging_at) or late_tables:
            # The pipeline's memory is free when all have multiplied their last chunk, or arrived.
            with nullcontext() if kernel.whole is None else b.when(kernel.whole):
                call(b, "q_sync")
        if late_tables:
            self._fetch_tables()
        if late_residual:
            self._each_unit(self._fetch_residual)
        if late_tables or late_residual:
            call(b, "q_commit")
            call(b, "q_wait0")
            call(b, "q_sync")
        lane = b.let(rest(self.lane, LANES))
        group, quad = b.let(over(lane, 4)), b.let(rest(lane, 4) * 2)
        turned = b.let(self._turned(group))
        rows = []
        for i in range(2 * kernel.down):
            row = b.let(warp_row + i * 8 + group)
            # Surplus rows and columns compute the last one again; nothing of them is read.
            rows.append((row, b.let(tir.min(self.first_row + row, self.all_rows - 1))))
        elsewhere = set(self.epilogue.terms) - {self.residual}
        for n in range(kernel.right):
            cols = [b.let(warp_col + n * 8 + quad + i) for i in range(2)]
            # Rows of a thread are 8 apart and turned alike.
            granule = (over(cols[0], GRANULE) ^ turned) * GRANULE + rest(cols[0], GRANULE)
            granule = b.let(granule + self._staging_at)
            values: list[list[Expr]] = [[] for _ in rows]
            for i, col in enumerate(cols):
                self._col, self._loaded = col, {}
                channel = b.let(self.first_channel + self.first_col + col)
                if elsewhere:
                    # Surplus columns read what the last one does.
                    channel = b.let(tir.min(channel, const(self.matrix.geometry.weights.shape[0] - 1)))
                for j, (row, place) in enumerate(rows):
                    acc = b.load(kernel.accs, (j // 2 * kernel.right + n) * 4 + j % 2 * 2 + i)
                    if self.variant.form is PACKED:
                        acc = tir.shift_right(acc, const(4))
                    if self._bias is not None:
                        acc = acc + self.parameter(self._bias)
                    self._here = row * self.tile.cols + granule + i
                    coords = [b.let(c) for c in output_coords(self.ctx, self.matrix, place, channel)]
                    value = self.epilogue.value(b.let(acc), coords, 1)
                    # Clipped to a byte already: no need to cut it to one.
                    values[j].append(b.let(_uncut(value) if self.staged else value))
            for (row, _), pair in zip(rows, values, strict=True):
                if self.staged:
                    to = address(b, self.memory, row * self.tile.cols + granule)
                    call(b, "q_bytes2", to, *pair)
                else:
                    self._store_pair(row, cols, pair)
        if self.staged:
            call(b, "q_sync")
            self._each_unit(self._store_unit)

    def _turned(self, row: Expr) -> Expr:
        """By what the granules of a staged row change places, so that those of eight rows lie in different banks."""
        return rest(over(row, max(1, 8 // self.granules)), self.granules)

    def _staged(self, row: Expr, col: Expr) -> Expr:
        granule = over(col, GRANULE) ^ self._turned(row)
        return row * self.tile.cols + granule * GRANULE + rest(col, GRANULE) + self._staging_at

    def _store_pair(self, row: Expr, cols: list[Expr], pair: list[Expr]) -> None:
        """Straight to memory; a place behind the last column has no room."""
        b = self.b
        place = b.let(self.first_row + row)
        if self.unit >= 2 * _WORD:
            # Columns come in pairs, and so does room.
            column = b.let(self.first_col + cols[0])
            with b.when(tir.all(place < self.all_rows, column < self.room)):
                to = address(b, self.ctx.output.buffer, self._at(self.ctx.output, place, column))
                call(b, "q_words2", to, *pair)
            return
        for col, value in zip(cols, pair, strict=True):
            column = b.let(self.first_col + col)
            with b.when(tir.all(place < self.all_rows, column < self.room)):
                b.store(self.ctx.output.buffer, self._at(self.ctx.output, place, column), value)

    def _at(self, stored: Any, row: Expr, col: Expr) -> Expr:
        rows = self.matrix.rows
        inner = rest(row, rows) if self.folded else row
        index = stored.address(output_coords(self.ctx, self.matrix, inner, self.first_channel + col))
        return behind(stored.buffer, over(row, rows), index) if self.folded else index

    def _each_unit(self, visit: Any) -> None:
        """`visit(row, column of the tile, place of the row, column)` for every unit of the tile that is stored."""
        b, tile = self.b, self.tile
        per_row = tile.cols // self.unit
        total = tile.rows * per_row
        for turn in range(-(-total // THREADS)):
            index = b.let(self.lane + turn * THREADS)
            row, start = b.let(over(index, per_row)), b.let(rest(index, per_row) * self.unit)
            place, col = b.let(self.first_row + row), b.let(self.first_col + start)
            with b.when(tir.all(index < total, place < self.all_rows, col < self.room)):
                visit(row, start, place, col)

    def _fetch_residual(self, row: Expr, start: Expr, place: Expr, col: Expr) -> None:
        b = self.b
        assert self.residual
        stored = self.ctx.stored(self.residual)
        of = address(b, stored.buffer, self._at(stored, place, col))
        call(b, f"q_copy{self.unit}", address(b, self.memory, self._staged(row, start)), of)

    def _store_unit(self, row: Expr, start: Expr, place: Expr, col: Expr) -> None:
        b = self.b
        to = address(b, self.ctx.output.buffer, self._at(self.ctx.output, place, col))
        call(b, f"q_store{self.unit}", to, address(b, self.memory, self._staged(row, start)))
