"""Convolutions and linear layers as matrix products: which layers are, and where the bytes of a row lie.

Rows are output pixels, or the vectors of a linear layer; columns are output channels.  The inner dimension runs over
what a row reads, in runs of bytes that lie together: the taps of a kernel row where they are neighbours, else the
channels of one tap.  Runs are cut into units, what one thread copies at once.

Groups too narrow for units of 16 bytes are merged: the weights between groups of a merged one are zeros.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from qcompile.ir import storage
from targets._tvm.builder import Expr, const
from targets._tvm.context import Context
from targets._tvm.kernels.conv_direct import Geometry, geometry_of
from targets._tvm.kernels.epilogue import per_channel
from targets._tvm.kernels.window import holds_padding, is_depthwise
from targets.cuda.block import GRANULE, over, rest
from targets.cuda.tiles import CHUNK, Shape

_UNITS = (GRANULE, 8, 4)
_ALIGNED = 256
"""Of the arena, and of the caller's arrays on the device."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """A layer as a matrix product of one sample.

    Attributes:
        geometry: in bytes of the input.
        merged: groups in one product.
        unit: bytes of one copy of the first factor.
        across: runs in a kernel row, one or as many as taps.
        run: bytes of a run that are copied, a multiple of `unit`.
    """

    geometry: Geometry
    merged: int
    unit: int
    across: int
    run: int

    @property
    def groups(self) -> int:
        """Products, each with inputs and outputs of its own."""
        return self.geometry.groups // self.merged

    @property
    def cols(self) -> int:
        """Columns of one product."""
        return int(self.geometry.weights.shape[0]) // self.groups

    @property
    def rows(self) -> int:
        return self.geometry.height * self.geometry.width

    @property
    def group_bytes(self) -> int:
        """From the inputs of one product to those of the next."""
        return int(self.geometry.weights.shape[1]) * self.merged

    @property
    def inner(self) -> int:
        """Bytes that a row reads."""
        return int(self.geometry.weights.shape[2]) * self.across * self.run

    @property
    def shape(self) -> Shape:
        return Shape(self.rows, self.cols, -(-self.inner // CHUNK), self.groups)

    def start(self, row: Expr) -> Expr:
        """Address of the first byte that a row reads, of the first product."""
        g = self.geometry
        return over(row, g.width) * (g.stride[0] * g.row) + rest(row, g.width) * (g.stride[1] * g.pixel) + g.origin

    def inside(self, unit: Expr) -> Expr:
        """How far behind its `start` a row reads unit number `unit`."""
        g, units = self.geometry, self.run // self.unit
        run, behind = over(unit, units), rest(unit, units) * self.unit
        down, right = over(run, self.across), rest(run, self.across)
        return down * (g.dilation[0] * g.row) + right * (g.dilation[1] * g.pixel) + behind


def alignment(ctx: Context, value: str) -> int:
    """What divides the address of a value on the device, of every sample of a batch."""
    buffer = ctx.program.buffers[value]
    # A caller's samples lie behind each other without room between.
    return _ALIGNED if buffer.place == "arena" else math.gcd(_ALIGNED, buffer.layout.bytes)


def matrix_of(ctx: Context) -> Matrix | None:
    """The product that a kernel is, or None: not a matrix product, or its bytes do not lie as copies need them."""
    node = ctx.anchor
    if node.op not in ("conv2d", "linear") or is_depthwise(ctx, node) or not per_channel(ctx):
        return None
    source, out = ctx.layout(node.inputs[0]), ctx.out_layout
    if source.dtype == "i32":
        return None
    if node.op == "linear":
        # The requant reads other values at the row and column of the product.
        if any(ctx.layout(value).shape != out.shape for value in ctx.kernel.inputs[1:]):
            return None
        if any(ctx.layout(value).channels_last for value in (*ctx.kernel.inputs, ctx.kernel.name)):
            return None
        return _cut(ctx, geometry_of(ctx))
    padded = holds_padding(source, node.attrs.ints("pad"), node.attrs.int("pad_value"))
    if not (source.channels_last and out.channels_last and padded):
        return None
    return _cut(ctx, geometry_of(ctx))


def _cut(ctx: Context, g: Geometry) -> Matrix | None:
    outputs, inputs, _, kw = g.weights.shape
    merged = next(
        m for m in range(1, g.groups + 1)
        if m == g.groups or (not g.groups % m and not m * inputs % GRANULE and not outputs * m // g.groups % GRANULE)
    )  # fmt: skip
    whole = merged == g.groups
    together = whole and g.dilation[1] == 1
    steps = [g.origin, g.stride[0] * g.row, g.stride[1] * g.pixel, g.dilation[0] * g.row]
    steps += [] if together else [g.dilation[1] * g.pixel]
    steps += [] if whole else [inputs * merged]
    aligned = math.gcd(alignment(ctx, ctx.anchor.inputs[0]), *steps)
    for unit in _UNITS:
        # Rounded up, a run ends inside the row it lies in if rows are whole units, and a pixel's if pixels are.
        bound = g.row if together and ctx.anchor.op == "conv2d" else g.pixel
        wanted = (kw * g.pixel if together else g.pixel) if whole else inputs * merged
        if aligned % unit == 0 and (bound % unit == 0 or wanted % unit == 0):
            return Matrix(g, merged, unit, 1 if together else kw, -(-wanted // unit) * unit)
    return None


def in_granules(ctx: Context) -> bool:
    """Whether a kernel is one product whose inputs and outputs are bytes in whole granules."""
    matrix = matrix_of(ctx)
    whole = matrix is not None and matrix.unit == GRANULE and matrix.groups == 1 and item_bytes(ctx) == 1
    return whole and not math.gcd(ctx.out_layout.pixel, alignment(ctx, ctx.kernel.name)) % GRANULE


def item_bytes(ctx: Context) -> int:
    """Of a stored output."""
    return int(storage(ctx.out_layout.dtype).itemsize)


def output_coords(ctx: Context, matrix: Matrix, row: Expr, channel: Expr) -> tuple[Expr, ...]:
    """Logical coordinates of an output; the rows of a linear layer are its flattened leading dimensions."""
    if ctx.anchor.op == "conv2d":
        return channel, over(row, matrix.geometry.width), rest(row, matrix.geometry.width)
    rank = len(ctx.out_layout.shape)
    return (*([const(0)] * (rank - 2)), *([row] if rank > 1 else []), channel)
