"""F(4×4, 3×3) by rows, with weights that are transformed while they are multiplied.

For each two input channels the transformed weights of a row of positions come from three to nine vectors of the weights
as they are, by additions that a processor does beside its dot products where those have execution units of their own.
So weights take 21 bytes for 9, not 72, and stay in the near caches: that is what images of few tiles and many channels
wait for.

Rows of G and columns of Gᵀ are used without their factors 6, −4, −4, 1, 1 and 12 (`packing.WINOGRAD_G`); the transform
of the outputs has them instead.  Everything else, and why it is exact, is as in `winograd`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from targets._tvm.builder import Expr, cast, const, reinterpret, vec
from targets._tvm.context import Constant, Context, Emitted
from targets._tvm.kernels.winograd_form import F4, outputs_4_without_factors
from targets._tvm.kernels.winograd_rows import WinogradRows
from targets._tvm.packing import WINOGRAD_BIAS

FORM = replace(F4, outputs=outputs_4_without_factors)

_SECTIONS = {"g0": 0, "g1": 3, "g2": 6, "near": 9, "far": 15}
"""Where a section of `packing.winograd_inline_weights` begins, in vectors of bytes for each step."""


class WinogradInline(WinogradRows):
    """The generator; see `WinogradRows`."""

    def __init__(self, ctx: Context) -> None:
        super().__init__(ctx, FORM)

    def _pack_weights(self, weights: str | None) -> Constant:
        return self.ctx.pack("winograd_inline_weights", weights, lanes=self.lanes, width=self.width)

    def _pack_start(self, weights: str | None) -> Constant:
        bias, size = self.ctx.anchor.const("b"), self.blocks * self.lanes
        return self.ctx.pack("vector", bias, size=size) if bias else self.ctx.pack("zeros", size=size)

    def _start_of(self, row: int, column: int, block: Expr) -> Expr:
        wide = vec("int32", self.lanes)
        if (row, column) != (1, 1) or self.ctx.anchor.const("b") is None:
            return const(0, wide)
        # This position counts −4 in both directions.
        return self.b.load(self.start, block * self.lanes, self.lanes) * const(WINOGRAD_BIAS[FORM.m] // 16, wide)

    def _multiply_row(self, row: int, block: Expr, step: Expr, accs: list[list[Any]], x: Expr) -> None:
        b = self.b
        weights = b.let(block * self.stride)
        h = [self._weights_of(row, column, weights, step) for column in range(3)]

        def multiply(column: int, w: Expr) -> None:
            self._multiply_position(accs[column], column, x, w)

        # Each is multiplied before the next but one is made: few registers are free.
        multiply(0, h[0])
        multiply(5, h[2])
        near = b.let(h[0] + h[2])
        multiply(1, b.let(near + h[1]))
        multiply(2, b.let(near - h[1]))
        twice = b.let(h[1] + h[1])
        far = b.let(h[0] + h[2] * const(4, vec("int16", 2 * self.lanes)))
        multiply(3, b.let(far + twice))
        multiply(4, b.let(far - twice))

    def _weights_of(self, row: int, column: int, weights: Expr, step: Expr) -> Expr:
        """Row `row` of G without its factor, applied to a column of the weights: int16."""
        b = self.b
        if row in (0, 5):
            return self._bytes("g0" if row == 0 else "g2", column, weights, step)
        odd = self._bytes("g1", column, weights, step)
        if row in (3, 4):
            odd = b.let(odd + odd)
        even = self._shorts("near" if row in (1, 2) else "far", column, weights, step)
        return b.let(even + odd if row in (1, 3) else even - odd)

    def _bytes(self, section: str, column: int, weights: Expr, step: Expr) -> Expr:
        size = 2 * self.lanes
        at = weights + (_SECTIONS[section] * self.steps + column) * size + step * (3 * size)
        return self.b.let(cast(vec("int16", size), self.b.load(self.weights, at, size)))

    def _shorts(self, section: str, column: int, weights: Expr, step: Expr) -> Expr:
        size = 2 * self.lanes
        at = weights + (_SECTIONS[section] * self.steps + 2 * column) * size + step * (6 * size)
        return self.b.let(reinterpret(vec("int16", size), self.b.load(self.weights, at, 2 * size)))


def emit(ctx: Context) -> Emitted:
    """Generate the kernel of `ctx`, for which `winograd.is_legal` with F(4×4, 3×3) holds."""
    return WinogradInline(ctx).emit()
