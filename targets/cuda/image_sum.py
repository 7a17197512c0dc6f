"""Sums over whole images, as global average pooling needs: a block adds 32 channels, its threads every 16th pixel.

A thread reads four channels of a pixel at a time; the partial sums of the block meet in shared memory.
"""

from __future__ import annotations

from tvm import tirx as tir

from targets._tvm.builder import Expr, const
from targets._tvm.context import Context, Emitted
from targets._tvm.kernels.epilogue import Epilogue, store
from targets.cuda.block import BLOCK, BLOCKS_ATTRIBUTE, GRANULE, LANE, THREADS, call, fill_frame, shared
from targets.cuda.device import dot4, word_at

NAME = "image-sum"

_CHANNELS = 32
"""Of a block."""
_PITCH = _CHANNELS + 1
"""Words from one slice to the next in shared memory: stores of a warp lie in 32 banks."""
_WORD = 4
_SLICES = THREADS * _WORD // _CHANNELS
"""Threads that share the pixels of a channel."""
_FEWEST = 2 * _SLICES
"""Pixels of an image that is worth sharing."""


def is_legal(ctx: Context) -> bool:
    """A sum over all pixels of a channels-last image of bytes."""
    node, out = ctx.anchor, ctx.out_layout
    if node.op not in ("sum_pool", "reduce_sum"):
        return False
    layout = ctx.layout(node.inputs[0])
    whole = layout.channels_last and layout.dtype != "i32" and layout.pixel % GRANULE == 0
    if not whole or layout.shape[1] * layout.shape[2] < _FEWEST:
        return False
    if any(out.halo) and (out.dtype == "i32" or out.pixel % GRANULE):
        return False
    if node.op == "reduce_sum":
        return node.attrs.ints("axes") == (2, 3)
    return node.attrs.ints("kernel") == layout.shape[1:] and not any(node.attrs.ints("pad"))


def emit(ctx: Context) -> Emitted:
    """The kernel of `ctx`, for which `is_legal` holds."""
    node, b = ctx.anchor, ctx.b
    source = ctx.stored(node.inputs[0])
    layout = source.layout
    channels, _, width = layout.shape
    pixels = layout.shape[1] * width
    epilogue = Epilogue(ctx, ctx.kernel.epilogue, node.name)
    partial = shared(b, "int32", _SLICES * _PITCH)
    block, lane = tir.Var(BLOCK, "int32"), tir.Var(LANE, "int32")
    first = b.let(block * _CHANNELS)
    quad, piece = b.let(lane % (_CHANNELS // _WORD) * _WORD), b.let(lane // (_CHANNELS // _WORD))
    # Channels behind the last group read the first ones; nothing of them is stored.
    channel = b.let(tir.Select(first + quad < layout.pixel, first + quad, const(0)))
    sums = b.local("int32", _WORD)
    for c in range(_WORD):
        b.store(sums, c, const(0))
    with b.loop(-(-pixels // _SLICES)) as turn:
        pixel = b.let(turn * _SLICES + piece)
        at = b.let(source.address((channel, pixel // width, pixel % width)))
        word = b.let(tir.if_then_else(pixel < pixels, word_at(b, source.buffer, at), const(0)))
        for c in range(_WORD):
            b.store(sums, c, dot4(b.load(sums, c), word, const(1 << (8 * c))))
    for c in range(_WORD):
        b.store(partial, piece * _PITCH + quad + c, b.load(sums, c))
    call(b, "q_sync")
    with b.when(tir.all(lane < _CHANNELS, first + lane < channels)):
        total: Expr = const(0)
        for i in range(_SLICES):
            total = b.let(total + b.load(partial, lane + i * _PITCH))
        number = b.let(first + lane)
        coords = [number, *[const(0)] * (len(ctx.out_layout.shape) - 1)]
        store(ctx, coords, b.let(epilogue.value(total, coords, 1)))
    blocks = -(-layout.pixel // _CHANNELS)
    if ctx.out_layout.channels_last:
        fill_frame(ctx, blocks)
    emitted = ctx.finish()
    return Emitted(emitted.func.with_attr(BLOCKS_ATTRIBUTE, blocks), emitted.arguments)
