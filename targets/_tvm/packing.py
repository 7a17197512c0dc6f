"""How kernels want their constants: functions from a graph's arrays to packed parameters.  NumPy only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompile.ir import Array

STEP = 4
"""Input bytes of one dot product."""


def plain(array: Array, dtype: str, axes: Sequence[int] = ()) -> Array:
    """The array in another dtype, its axes permuted."""
    return array.astype(dtype).transpose(axes) if axes else array.astype(dtype)


def literal(values: Sequence[int]) -> Array:
    """int32 values that are attributes of an operator."""
    return np.array(values, dtype=np.int32)


def vector(array: Array, size: int) -> Array:
    """int32[size], zeros behind the given values."""
    return np.pad(array.astype(np.int32), (0, size - array.size))


def columns(array: Array, size: int) -> Array:
    """int32[size]: a number for each channel, the last one again behind them."""
    flat = array.astype(np.int32).reshape(-1)
    return np.pad(flat, (0, size - flat.size), mode="edge")


def zeros(size: int) -> Array:
    """int32[size]: the bias of a layer without one."""
    return np.zeros(size, dtype=np.int32)


def lane_table(array: Array, rank: int, channels_last: bool, lanes: int) -> Array:
    """A constant that broadcasts to one sample: int32, channels-last for images, whole vectors of lanes."""
    array = array.astype(np.int32).reshape((1,) * (rank - array.ndim) + array.shape)
    if channels_last:
        array = array.transpose(1, 2, 0)
    if array.ndim and array.shape[-1] > 1:
        array = np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, -array.shape[-1] % lanes)])
    return array


def depthwise(w: Array, lanes: int) -> Array:
    """int8[C, 1, KH, KW] → int32[KH·KW, C rounded up to lanes]."""
    channels = w.shape[0]
    return np.pad(w.reshape(channels, -1).T.astype(np.int32), ((0, 0), (0, -channels % lanes)))


def circular_groups(groups: int, segments: int) -> int:
    """16-channel groups in a table that vectors of `segments` groups read from any group on, wrapping around."""
    return groups if groups % segments == 0 else groups + segments - 1


def _segments(array: Array, groups: int, segments: int) -> Array:
    """[channels, …] → [4, circular groups, 4, …]: the order of bytes interleaved in 16-byte segments."""
    array = np.pad(array, ((0, groups * 16 - len(array)), *[(0, 0)] * (array.ndim - 1)))
    quarters = array.reshape(groups, 4, 4, *array.shape[1:]).swapaxes(0, 1)
    return quarters[:, np.arange(circular_groups(groups, segments)) % groups]


def segment_table(array: Array, groups: int, segments: int) -> Array:
    """A constant per channel as int32 in the order of interleaved bytes; one number stays one."""
    array = array.astype(np.int32).reshape(-1)
    return array if array.size == 1 else _segments(array, groups, segments)


def shifted_segments(w: Array, *bias: Array, offset: int, groups: int, segments: int) -> Array:
    """`segment_table` of `shifted_bias`."""
    return _segments(shifted_bias(w, *bias, offset=offset, size=len(w)), groups, segments)


def quads(w: Array, taps: Sequence[Sequence[int]], groups: int, segments: int) -> Array:
    """int8[C, 1, KH, KW] → int8[quads, 4, circular groups, 4, 4]: the chosen 4 taps (−1: zero) of every channel."""
    flat = np.pad(w.reshape(len(w), -1), ((0, 0), (0, 1)))
    return np.stack([_segments(flat[:, list(chosen)], groups, segments) for chosen in taps])


def input_width(w: Array, groups: int, lanes: int) -> int:
    """Consecutive input channels that a block of `lanes` output channels reads."""
    per_group, inputs = int(w.shape[0]) // groups, int(w.shape[1])
    if groups == 1 or per_group % lanes == 0:
        return inputs
    return inputs * min(lanes // per_group, groups)


def first_channel(block: Any, outputs: int, inputs: int, groups: int, lanes: int) -> Any:
    """The first input channel a block of output channels reads; `block` may be an expression."""
    per_group = outputs // groups
    if groups == 1:
        return block * 0
    if per_group % lanes == 0:
        return block // (per_group // lanes) * inputs
    return block * (lanes // per_group * inputs)


def direct(w: Array, groups: int, lanes: int, merged: bool, step: int = STEP, split: int = 1) -> Array:
    """int8[O, I/g, KH, KW] → int8[blocks, KH, runs, steps, split, lanes, step/split], zeros wherever nothing is read.

    A block reads the input channels of all groups its outputs belong to.  With `merged`, the taps of a
    kernel row are one run of bytes; otherwise every tap is a run.
    """
    if w.ndim == 2:
        w = w.reshape(*w.shape, 1, 1)
    out, inputs, kh, kw = w.shape
    per_group, blocks = out // groups, -(-out // lanes)
    width = input_width(w, groups, lanes)
    dense = np.zeros((blocks * lanes, kh, kw, width), dtype=np.int8)
    for o in range(out):
        start = o // per_group * inputs - int(first_channel(o // lanes, out, inputs, groups, lanes))
        dense[o, :, :, start : start + inputs] = w[o].transpose(1, 2, 0)
    runs = dense.reshape(len(dense), kh, 1 if merged else kw, -1)
    runs = np.pad(runs, ((0, 0), (0, 0), (0, 0), (0, -runs.shape[-1] % step)))
    whole = runs.reshape(blocks, lanes, kh, runs.shape[2], -1, split, step // split)
    return whole.transpose(0, 2, 3, 4, 5, 1, 6)


def direct_gathered(w: Array, lanes: int) -> Array:
    """int8[O, I, KH, KW] → int8[blocks, steps, lanes, 4].

    The whole steps of all merged rows come as in `direct`, then what is left of the rows, four bytes a step.
    """
    rows = np.pad(w.transpose(0, 2, 3, 1).reshape(len(w), w.shape[2], -1), ((0, -len(w) % lanes), (0, 0), (0, 0)))
    whole = rows.shape[2] // STEP * STEP
    left = rows[:, :, whole:].reshape(len(rows), -1)
    left = np.pad(left, ((0, 0), (0, -left.shape[1] % STEP)))
    steps = np.concatenate([rows[:, :, :whole].reshape(len(rows), -1), left], axis=1)
    return steps.reshape(-1, lanes, steps.shape[1] // STEP, STEP).transpose(0, 2, 1, 3)


def direct_half(w: Array, high: bool, **shape: Any) -> Array:
    """`direct` of the lower or the upper half of weights: low + 16·high, −8 ≤ low ≤ 7, −8 ≤ high ≤ 8."""
    whole = direct(w, **shape).astype(np.int16)
    low = (whole + 8 & 15) - 8
    return np.asarray((whole - low) // 16 if high else low, dtype=np.int8)


def matrix(
    w: Array, groups: int, merged: int, pixel: int, across: int, run: int, cols: int, chunk: int, nibbles: bool
) -> Array:
    """int8[O, I/g(, KH, KW)] → int8[products · tiles of `cols` outputs, chunks, cols, chunk bytes], or half the bytes.

    The rows of a product are KH · across runs of `run` bytes: the taps of a kernel row `pixel` apart (across = 1), or
    one tap each.  A product is that of `merged` groups, with zeros between them.  As nibbles, byte i of a chunk holds
    weight i in its lower and weight chunk/2 + i in its upper half.
    """
    if w.ndim == 2:
        w = w.reshape(*w.shape, 1, 1)
    out, inputs, kh, kw = w.shape
    products = groups // merged
    dense = np.zeros((out, kh, kw, pixel if products == 1 else inputs * merged), dtype=np.int8)
    for o in range(out):
        start = o // (out // groups) % merged * inputs
        dense[o, :, :, start : start + inputs] = w[o].transpose(1, 2, 0)
    runs = dense.reshape(out, kh, across, -1)
    runs = np.pad(runs, ((0, 0), (0, 0), (0, 0), (0, run - runs.shape[-1])))
    rows = runs.reshape(products, out // products, -1)
    rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % cols), (0, -rows.shape[2] % chunk)))
    whole = rows.reshape(-1, cols, rows.shape[2] // chunk, chunk).transpose(0, 2, 1, 3)
    return whole[..., : chunk // 2] & 15 | whole[..., chunk // 2 :] << 4 if nibbles else whole


def tiles(w: Array, pixel: int, merged: bool, chunks: int, chunk: int) -> Array:
    """int8[O, I(, KH, KW)] → int8[O/16 rounded up, KH·runs·chunks, chunk/4, 16, 4], zeros wherever nothing is read.

    With `merged`, the taps of a kernel row are one run of bytes, `pixel` apart; otherwise every tap is a run.
    """
    if w.ndim == 2:
        w = w.reshape(*w.shape, 1, 1)
    out, inputs, kh, kw = w.shape
    dense = w.transpose(0, 2, 3, 1)
    if merged:
        dense = np.pad(dense, ((0, 0), (0, 0), (0, 0), (0, pixel - inputs))).reshape(out, kh, 1, -1)
        dense = dense[..., : kw * pixel - (pixel - inputs)]
    dense = np.pad(dense, ((0, -out % 16), (0, 0), (0, 0), (0, chunks * chunk - dense.shape[-1])))
    return dense.reshape(len(dense) // 16, 16, -1, chunk // 4, 4).transpose(0, 2, 3, 1, 4)


NIBBLE_PAIR = 128
"""Bytes of the two vectors that `nibble_tiles` makes one of."""


def nibble_tiles(w: Array, pixel: int, merged: bool, chunks: int, chunk: int, behind: int) -> Array:
    """`tiles` of weights in [−8, 7] as uint8[tiles, ⌈bytes/128⌉, 64]: of every two vectors of 64 bytes the first in the
    lower nibbles, the second in the upper ones; and as many tiles of zeros behind as the last argument says.
    """
    flat = tiles(w, pixel, merged, chunks, chunk).reshape(-1, 16 * chunk).view(np.uint8)
    pairs = np.pad(flat, ((0, behind), (0, -flat.shape[1] % NIBBLE_PAIR))).reshape(len(flat) + behind, -1, 2, 64)
    return np.asarray(pairs[:, :, 0] & 15 | pairs[:, :, 1] << 4)


def shifted_bias(w: Array, *bias: Array, offset: int, size: int) -> Array:
    """int32[size]: bias + offset·Σw, modulo 2^32, for kernels that subtract `offset` from every input."""
    total = offset * w.reshape(len(w), -1).sum(axis=1, dtype=np.int64)
    total += bias[0].astype(np.int64) if bias else 0
    return np.pad(total, (0, size - len(w))).astype(np.int32)


_AT_ONCE = 1 << 18
"""Elements of a transformed array that are held at once while packing."""

WINOGRAD_G: Mapping[int, NDArray[np.int32]] = {
    2: np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]], dtype=np.int32),
    4: np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 12]], dtype=np.int32),
}
"""G of F(m, 3) for m = 2 and 4, every row scaled to integers."""

WINOGRAD_OFFSET = 128
"""F(2, 3): added to every transformed input but the one that cannot be negative, so that all are uint8."""

WINOGRAD_BIAS = {2: 4, 4: 576}
"""What the bias counts at position (1, 1), which every output of a tile contains equally often."""


def winograd_transform(w: Array, m: int) -> Array:
    """int8[O, I, 3, 3] → int32[(m + 2)², O, I]: G·g·Gᵀ with the integer G."""
    # All sums are below 2^24, so single precision is exact, and ten times as fast as integers.
    u = np.kron(WINOGRAD_G[m], WINOGRAD_G[m]).astype(np.float32) @ w.reshape(-1, 9).T.astype(np.float32)
    return u.astype(np.int32).reshape(-1, *w.shape[:2])


def winograd_weights(w: Array, m: int, lanes: int, width: int, dtype: str, room: Array | None = None) -> Array:
    """int8[O, I, 3, 3] → [blocks, (m + 2)², width/step, lanes, step]; a step is 4 bytes of `dtype`.

    `room`: bytes, the first of which become the result; up to eight times as many as weights are not copied then.
    """
    step, blocks = STEP // np.dtype(dtype).itemsize, -(-len(w) // lanes)
    shape = (blocks, (m + 2) ** 2, width // step, lanes, step)
    packed: Array
    if room is None:
        packed = np.empty(shape, dtype=dtype)
    else:
        packed = room[: math.prod(shape) * np.dtype(dtype).itemsize].view(dtype).reshape(shape)
    # A few blocks at a time: all at once are several times as large as what comes of them.
    few = max(1, _AT_ONCE // (lanes * width * (m + 2) ** 2))
    for first in range(0, blocks, few):
        u = winograd_transform(w[first * lanes : (first + few) * lanes], m)
        u = np.pad(u, ((0, 0), (0, -u.shape[1] % lanes), (0, width - u.shape[2]))).astype(dtype)
        packed[first : first + few] = u.reshape(len(u), -1, lanes, width // step, step).transpose(1, 0, 3, 2, 4)
    return packed


def winograd_start(w: Array, *bias: Array, m: int, lanes: int, signed: bool = False) -> Array:
    """int32[(m + 2)², O rounded up]: what the products start from, to undo the offset and to add the bias.

    With `signed`, the offset was subtracted at position (1, 1) instead of added everywhere else.
    """
    first, sums = m + 3, w.reshape(*w.shape[:2], 9).sum(axis=1, dtype=np.int64)
    offsets = (WINOGRAD_OFFSET if m == 2 else 0) * (np.kron(WINOGRAD_G[m], WINOGRAD_G[m]) @ sums.T)
    start = np.zeros_like(offsets) if signed else -offsets
    start[first] = offsets[first] if signed else 0
    start[first] += WINOGRAD_BIAS[m] * bias[0].astype(np.int32) if bias else 0
    return np.pad(start, ((0, 0), (0, -w.shape[0] % lanes))).astype(np.int32)


def winograd_inline_weights(w: Array, lanes: int, width: int) -> Array:
    """int8[O, I, 3, 3] → int8[blocks, 21·width·lanes]: what transforming by rows starts from, in five sections.

    A section is [width/2, 3, lanes, 2], 3 for the columns: the kernels' first, second and third rows g0, g1 and g2 as
    they are, then g0 + g2 and g0 + 4·g2 in int16.
    """
    blocks = -(-len(w) // lanes)
    whole = np.pad(w, ((0, -len(w) % lanes), (0, width - w.shape[1]), (0, 0), (0, 0)))
    # [O, I, row, column] → [row, block, I/2, column, lane, 2]
    rows = whole.reshape(blocks, lanes, width // 2, 2, 3, 3).transpose(4, 0, 2, 5, 1, 3)
    first, third = rows[0].astype(np.int16), rows[2].astype(np.int16)
    sections = [rows[0], rows[1], rows[2], first + third, first + 4 * third]
    return np.concatenate([np.ascontiguousarray(s).view(np.int8).reshape(blocks, -1) for s in sections], axis=1)
