"""What kernels written for blocks of threads have in common: their variables, shared memory, and calls on the device.

A block is THREADS threads, WARPS warps of LANES lanes; BLOCK and LANE are its number and the thread's number in it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import tirx as tir

from qcompile.ir import storage
from targets._tvm.builder import Builder, Expr, cast, const, dtype_of
from targets._tvm.context import Context

GRANULE = 16
"""Bytes of the widest copy of one thread."""
WARPS = 4
LANES = 32
THREADS = WARPS * LANES

BLOCK, LANE = "q_block", "q_lane"
"""The variables a block kernel reads: its number in the grid, and the thread's number in the block."""

BLOCKS_ATTRIBUTE = "qcompile.blocks"
"""On a function: it is written for this many blocks of THREADS threads; others are spread by `grid`."""


SAMPLE, SAMPLES = "q_sample", "q_samples"
"""The variables a folded kernel reads besides: its block's number in the grid's second dimension, and that dimension's
size, which is the number of samples."""

FOLDED_ATTRIBUTE = "qcompile.folded"
"""On a function for blocks: its pointers are those of the first sample, and what `stride` says lies between samples."""


def stride(buffer: Any) -> Expr:
    """Elements from a buffer of one sample to that of the next, in a folded kernel."""
    return over(tir.Var(stride_name(buffer), "int64"), np.dtype(str(buffer.dtype)).itemsize)


def stride_name(buffer: Any) -> str:
    """The variable with the bytes."""
    return f"q_stride_{buffer.name}"


def behind(buffer: Any, sample: Expr, index: Expr) -> Expr:
    """An element of a sample, in a folded kernel."""
    return cast("int64", sample) * stride(buffer) + cast("int64", index)


def over(x: Expr, n: int) -> Expr:
    """x // n of a number that is not negative, which the compiler cannot know: a shift where it can be one."""
    return x // n if n & (n - 1) else x if n == 1 else x >> const(n.bit_length() - 1, dtype_of(x))


def rest(x: Expr, n: int) -> Expr:
    """x % n, likewise."""
    return x % n if n & (n - 1) else const(0) if n == 1 else x & const(n - 1)


def shared(b: Builder, dtype: str, size: int) -> Any:
    """Memory of a block."""
    return b.local(dtype, size, scope="shared")


def address(b: Builder, buffer: Any, index: Expr) -> Expr:
    return tir.address_of(b.load(buffer, index))


def call(b: Builder, name: str, *arguments: Expr) -> None:
    """A call of one of the device functions of `runtime`."""
    b.evaluate(tir.call_extern("int32", name, *arguments))


def fill_frame(ctx: Context, blocks: int, *, folded: bool = False) -> None:
    """The halo of a channels-last output, shared among all threads of a grid of so many blocks for a sample."""
    b, layout = ctx.b, ctx.out_layout
    if not any(layout.halo):
        return
    block, lane = tir.Var(BLOCK, "int32"), tir.Var(LANE, "int32")
    top, left, _, _ = layout.halo
    _, height, width = layout.shape
    dtype = storage(layout.dtype)
    granules = dtype.itemsize == 1 and not layout.pixel % GRANULE
    step = GRANULE if granules else 1
    per_pixel = layout.pixel // step
    total = layout.rows * layout.cols * per_pixel
    with b.loop(-(-total // (blocks * THREADS))) as turn:
        index = b.let((turn * blocks + block) * THREADS + lane)
        pixel = b.let(index // per_pixel)
        row, col = b.let(pixel // layout.cols - top), b.let(pixel % layout.cols - left)
        outside = tir.any(row < 0, row >= height, col < 0, col >= width)
        at = behind(ctx.output.buffer, tir.Var(SAMPLE, "int32"), index * step) if folded else index * step
        with b.when(tir.all(index < total, outside)):
            if granules:
                call(b, "q_fill16", address(b, ctx.output.buffer, at), const(layout.fill))
            else:
                b.store(ctx.output.buffer, at, const(layout.fill, dtype.name))
