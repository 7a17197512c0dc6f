"""The direct convolution by 2×8 · 8×2 matrix products: two pixels by two channels in an accumulator."""

from __future__ import annotations

from typing import cast

from targets._tvm.builder import Expr, reinterpret, shuffle
from targets._tvm.context import Constant, Context, Emitted
from targets._tvm.kernels import conv_direct
from targets._tvm.kernels.conv_direct import DirectConv
from targets._tvm.kernels.tiling import Tile
from targets._tvm.neon import Matrix
from targets._tvm.packing import STEP

_STEP = 8
"""Input bytes of one product."""

_VECTOR = 16
_BLOCK = 2 * _VECTOR
"""Bytes of the weights of 4 channels in one step."""


class MatrixConv(DirectConv):
    """The generator.  Pixels 2i and 2i + 1 share registers; the last one of an odd count is doubled."""

    step, held, multiple = _STEP, 1, 2

    @property
    def matrix(self) -> Matrix:
        return cast(Matrix, self.isa)

    def _pack(self, merged: bool) -> Constant:
        weights = self.ctx.anchor.const("w")
        return self.ctx.pack("direct", weights, groups=self.groups, lanes=self.lanes, merged=merged, step=_STEP)

    def _accumulators(self, tile: Tile, block: Expr) -> list[list[Expr]]:
        """By block: int32[2 pixels][2 channels] of channels 0 and 1, and of 2 and 3, for every pair of pixels."""
        b, found = self.b, []
        for g in range(tile.blocks):
            bias = b.let(b.load(self.bias, (block + g) * self.lanes, self.lanes))
            starts = [b.let(shuffle(bias, bias, [c, c + 1, c, c + 1])) for c in (0, 2)]
            group = []
            for i in range(2 * -(-tile.pixels // 2)):
                acc = b.local("int32x4")
                b.store(acc, 0, starts[i % 2])
                group.append(acc)
            found.append(group)
        return found

    def _run(self, tile: Tile, accs: list[list[Expr]], inputs: Expr, weights: Expr) -> None:
        chunks, rest = divmod(self.run_steps * STEP // _STEP, 2)
        if chunks:
            with self.b.loop(chunks) as d:
                pairs = self._pairs(tile, inputs + d * _VECTOR, _VECTOR)
                for half in (0, 1):
                    self._multiply(tile, accs, [pair[half] for pair in pairs], weights + (d * 2 + half) * _BLOCK)
        if rest:
            pairs = self._pairs(tile, inputs + chunks * _VECTOR, _STEP)
            self._multiply(tile, accs, [pair[0] for pair in pairs], weights + chunks * (2 * _BLOCK))

    def _pairs(self, tile: Tile, inputs: Expr, size: int) -> list[list[Expr]]:
        """For every pair of pixels and each 8 of `size` bytes: uint8[2][8]."""
        b, found = self.b, []
        for p in range(0, tile.pixels, 2):
            both = []
            for pixel in (p, min(p + 1, tile.pixels - 1)):
                loaded = b.load(self.source.buffer, inputs + self._offset(tile, pixel), size)
                both.append(b.let(reinterpret("int64" if size == _STEP else "int64x2", loaded)))
            orders = [[0, 2], [1, 3]] if size == _VECTOR else [[0, 1]]
            found.append([b.let(shuffle(both[0], both[1], order)) for order in orders])
        return found

    def _multiply(self, tile: Tile, accs: list[list[Expr]], xs: list[Expr], weights: Expr) -> None:
        b, stride = self.b, self.steps * self.lanes * STEP
        for g in range(tile.blocks):
            for half in (0, 1):
                w = b.let(b.load(self.weights, weights + (g * stride + half * _VECTOR), _VECTOR))
                for i, x in enumerate(xs):
                    acc = accs[g][2 * i + half]
                    b.store(acc, 0, self.matrix.multiply(b.load(acc, 0), x, w))

    def _finish(self, tile: Tile, accs: list[list[Expr]], block: Expr, row: Expr, col: Expr, exact: int | None) -> None:
        b, found = self.b, []
        for group in accs:
            pixels = []
            for p in range(tile.pixels):
                low, high = (b.load(group[p // 2 * 2 + half], 0) for half in (0, 1))
                first = p % 2 * 2
                acc = b.local("int32x4")
                b.store(acc, 0, shuffle(low, high, [first, first + 1, first + 4, first + 5]))
                pixels.append(acc)
            found.append(pixels)
        super()._finish(tile, found, block, row, col, exact)


def is_legal(ctx: Context) -> bool:
    """Where `conv_direct.is_legal` holds: more than one pixel, and room for the last 8 bytes of a row."""
    source = ctx.program.buffers[ctx.anchor.inputs[0]]
    room = source.place == "arena" or source.layout.shape[-1] % _STEP == 0
    geometry = conv_direct.geometry_of(ctx)
    return room and geometry.height * geometry.width > 1


def emit(ctx: Context) -> Emitted:
    """Generate the kernel of `ctx`, for which `is_legal` holds."""
    return MatrixConv(ctx).emit()
