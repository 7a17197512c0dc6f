"""Winograd convolutions whose register tile is a row of positions of a few tiles: products never leave the registers.

`winograd` keeps all products of a chunk of tiles until every position is multiplied.  Here a tile of accumulators holds
all positions of one row, 6 × 4 or 4 × 7 in AVX-512, so the row is transformed back where it is.  An accumulator's input
is used once, so this is for instruction sets whose dot product reads it from memory, broadcast, at no cost.

Where tiles stick out of the image, the positions that serve only what is outside are left out.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from targets._tvm.builder import Expr, const, vec
from targets._tvm.context import Context, Emitted
from targets._tvm.kernels.tiling import Tile
from targets._tvm.kernels.winograd import Winograd
from targets._tvm.kernels.winograd_form import Form

_LINE = 64
"""Bytes that come from memory at once."""


class WinogradRows(Winograd):
    """The generator; see `Winograd`.  One block of output channels at a time.

    Attributes:
        spare: registers that hold no accumulators.
    """

    reuse, spare = 1, 4

    def _tile(self) -> Tile:
        most = (self.isa.registers - self.spare) // self.form.alpha
        _, height, width = self.ctx.out_layout.shape
        sticks_out = height % self.form.m or width % self.form.m
        # Chunks that are rows of tiles know which positions are needed.
        size = self.across if sticks_out and most // 2 < self.across <= most else most
        return Tile(1, 1, min(self.tiles, size))

    def _chunk(
        self, tile: Tile, block: Expr, place: tuple[Expr, Expr], turn: tuple[Expr, int], exact: int | None
    ) -> None:
        b, form, (unit, slot), (number, turns) = self.b, self.form, place, turn
        half = b.local(vec("int32", self.lanes), form.alpha * form.m * tile.cols)
        inputs = b.let(slot * (self.positions * self.size * self.width))
        # The next block's weights, spread over everything that is done with these.
        ahead = -(-self.stride // (form.alpha * self.steps * turns))
        for row in range(form.alpha):
            far = b.let((block + 1) * self.stride + (number * form.alpha + row) * (self.steps * ahead))
            with self._unless_outside(tile, unit, row):
                self._row(tile, row, half, block, inputs, (far, ahead))
        self._transform_outputs(tile, half, block, b.let(unit * self.size), exact)

    def _unless_outside(self, tile: Tile, unit: Expr, row: int) -> AbstractContextManager[None]:
        """Where a chunk is a row of tiles, the last row of positions serves nothing at an edge that sticks out."""
        last = self.ctx.out_layout.shape[1] % self.form.m and row == self.form.alpha - 1
        by_rows = tile.cols == self.size == self.across < self.tiles
        return self.b.when(unit < self.down - 1) if last and by_rows else nullcontext()

    def _is_needed(self, tile: Tile, t: int, row: int, column: int) -> bool:
        """Whether a position of tile t of a chunk may serve an output that is stored."""
        _, height, width = self.ctx.out_layout.shape
        last = self.form.alpha - 1
        if tile.cols == self.tiles:
            down, across = divmod(t, self.across)
        elif tile.cols == self.size == self.across:
            down, across = -1, t
        else:
            return True
        outside = column == last and across == self.across - 1 and width % self.form.m
        return not (outside or (row == last and down == self.down - 1 and height % self.form.m))

    def _row(self, tile: Tile, row: int, half: Expr, block: Expr, inputs: Expr, far: tuple[Expr, int]) -> None:
        """A row of positions: its products, transformed back along the row.

        `far`: the first of the weights to prefetch, and how many for each step; they are bytes.
        """
        b, form, wide = self.b, self.form, vec("int32", self.lanes)
        accs: list[list[Any]] = []
        for c in range(form.alpha):
            start = b.let(self._start_of(row, c, block))
            accs.append([None] * tile.cols)
            for t in range(tile.cols):
                if self._is_needed(tile, t, row, c):
                    accs[c][t] = b.local(wide)
                    b.store(accs[c][t], 0, start)
        first = b.let(inputs + row * (form.alpha * self.size * self.width))
        ahead, each = far
        with b.loop(self.ctx.opaque(self.steps)) as step:
            for line in range(0, each if self.blocks > 1 else 0, _LINE):
                b.prefetch(self.weights, ahead + step * each + line, nearest=False)
            self._multiply_row(row, block, step, accs, b.let(first + step * form.step))
        for t in range(tile.cols):
            products = [const(0, wide) if tiles[t] is None else b.let(b.load(tiles[t], 0)) for tiles in accs]
            for c, value in enumerate(form.outputs(products)):
                b.store(half, (row * form.m + c) * tile.cols + t, value)

    def _start_of(self, row: int, column: int, block: Expr) -> Expr:
        """What the products of a position start from."""
        position = row * self.form.alpha + column
        return self.b.load(self.start, (position * self.blocks + block) * self.lanes, self.lanes)

    def _multiply_row(self, row: int, block: Expr, step: Expr, accs: list[list[Any]], x: Expr) -> None:
        """A step of all positions of a row; `x`: address of the first position's inputs."""
        size = self.lanes * self.form.step
        for column in range(self.form.alpha):
            position = row * self.form.alpha + column
            at = block * self.stride + position * (self.steps * size) + step * size
            self._multiply_position(accs[column], column, x, self.b.load(self.weights, at, size))

    def _multiply_position(self, accs: list[Any], column: int, x: Expr, weights: Expr) -> None:
        """A step of one position: its weights with every tile's inputs."""
        w = self._weight_operand(weights)
        for t, acc in enumerate(accs):
            if acc is not None:
                self._add_product(acc, self._input_operand(x + (column * self.size + t) * self.width), w)


def emit(ctx: Context, form: Form) -> Emitted:
    """Generate the kernel of `ctx`, for which `winograd.is_legal` holds."""
    return WinogradRows(ctx, form).emit()
