"""The copy of a row-major image of few channels into pixels: planes interleaved in registers."""

from __future__ import annotations

from collections.abc import Callable

from targets._tvm.builder import Expr, const, shuffle, vec
from targets._tvm.context import Context
from targets._tvm.kernels.pointwise import lane_axis

_PIXELS = 16
"""Pixels of one step, and bytes of one load."""

_BYTE_COST = 16
"""Multiply-adds of a tuned convolution in the time of copying a byte."""


def is_legal(ctx: Context) -> bool:
    """A plain copy of bytes from planes to pixels of 1, 3 or 4 channels, at least one step wide."""
    node, out = ctx.anchor, ctx.out_layout
    if node.op != "reshape" or ctx.kernel.epilogue is not None or ctx.isa.lanes == 1:
        return False
    source = ctx.layout(node.inputs[0])
    planes = source.shape == out.shape and len(out.shape) == 3 and lane_axis(source) == 2 and out.channels_last
    return planes and out.dtype != "i32" and out.pixel in (1, 3, 4) and out.shape[2] >= _PIXELS


def emit(ctx: Context) -> None:
    """All pixels of the image; the last step of a row overlaps the one before."""
    b, out = ctx.b, ctx.output
    source = ctx.stored(ctx.anchor.inputs[0])
    channels, height, width = out.layout.shape
    interleave = {1: lambda b, v: v, 3: _three, 4: _four}[out.layout.pixel]

    def step(row: Expr, col: Expr) -> None:
        planes = [b.let(b.load(source.buffer, source.address((const(c), row, col)), _PIXELS)) for c in range(channels)]
        address = b.let(out.address((const(0), row, col)))
        for i, part in enumerate(interleave(b.let, planes)):
            b.store(out.buffer, address + i * _PIXELS, part)

    with b.loop(height, ctx.parallel_kind(channels * height * width * _BYTE_COST, height)) as row:
        with b.loop(width // _PIXELS) as i:
            step(row, i * _PIXELS)
        if width % _PIXELS:
            step(row, const(width - _PIXELS))


def _three(let: Callable[[Expr], Expr], planes: list[Expr]) -> list[Expr]:
    """Three vectors: red, green, blue, red, …"""
    parts = []
    for first in range(0, 3 * _PIXELS, _PIXELS):
        places = range(first, first + _PIXELS)
        # What belongs to the third plane is taken from it in the second shuffle.
        two = let(shuffle(planes[0], planes[1], [p // 3 + (_PIXELS if p % 3 == 1 else 0) for p in places]))
        order = [_PIXELS + p // 3 if p % 3 == 2 else i for i, p in enumerate(places)]
        parts.append(let(shuffle(two, planes[2], order)))
    return parts


def _four(let: Callable[[Expr], Expr], planes: list[Expr]) -> list[Expr]:
    """One vector of 4-byte pixels, zeros where there are fewer channels."""
    planes = planes + [const(0, vec("uint8", _PIXELS))] * (4 - len(planes))
    pairs = [i // 2 + _PIXELS * (i % 2) for i in range(2 * _PIXELS)]
    one, two = (let(shuffle(planes[i], planes[i + 1], pairs)) for i in (0, 2))
    quads = [i // 4 * 2 + i % 2 + 2 * _PIXELS * (i // 2 % 2) for i in range(4 * _PIXELS)]
    return [let(shuffle(one, two, quads))]
