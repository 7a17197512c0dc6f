"""From reals to integers and back: scales of weights and activations, and the host's boundary functions.

Activations are unsigned with a zero point, per tensor; weights symmetric per output channel
(integer-semantics, rule 2).  These functions run on the host, before and after the integer graph.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from qcompile.ir import Array, Grid, int_range, storage

Float = NDArray[np.float64]


def activation_grid(lo: float, hi: float, bits: int) -> Grid:
    """The unsigned grid of `bits` bits that covers [lo, hi] ∪ {0}; zero is on the grid.

    A range of width 0 (a constant zero) gets scale 1.
    """
    lo, hi = min(lo, 0.0), max(hi, 0.0)
    top = (1 << bits) - 1
    scale = (hi - lo) / top
    if not np.isfinite(scale) or scale < 1e-30:
        return Grid(1.0, 0, f"u{bits}")
    zero = int(np.clip(np.rint(-lo / scale), 0, top))
    return Grid(float(scale), zero, f"u{bits}")


def quantize(x: Array, grid: Grid) -> Array:
    """Real → integer: round half to even of x / scale in float64, plus zero, clipped to the dtype."""
    lo, hi = int_range(grid.dtype)
    q = np.asarray(np.divide(x, grid.scale, dtype=np.float64))
    np.rint(q, out=q)
    q += grid.zero
    return np.asarray(np.clip(q, lo, hi, out=q).astype(storage(grid.dtype)))


def dequantize(q: Array, grid: Grid) -> Array:
    """Integer → float32: scale · (q − zero)."""
    if q.dtype == np.uint8 and q.size >= _TABLE_FROM:
        return _reals(grid).take(q)
    return ((q.astype(np.float64) - grid.zero) * grid.scale).astype(np.float32)


_TABLE_FROM = 256
"""Elements from which looking up is quicker than computing."""


@lru_cache(maxsize=256)
def _reals(grid: Grid) -> Array:
    """What each uint8 stands for."""
    reals = ((np.arange(256.0) - grid.zero) * grid.scale).astype(np.float32)
    reals.flags.writeable = False
    return reals


def fake_quantize(x: Array, grid: Grid) -> Array:
    """The real value each x is represented by."""
    return dequantize(quantize(x, grid), grid)


_IN_CACHE = 1 << 15
"""Weights looked at together in a search."""

_SHRINK = np.concatenate([[1.0], np.arange(0.98, 0.38, -0.02)])


def weight_range(bits: int) -> tuple[int, int]:
    """Smallest and largest integer of a weight: all that `bits` bits hold, but −127 … 127 at 8 bits.

    Fewer bits have few integers: one of 16 is worth an eighth of the squared error.  One of 256 is worth nothing,
    while kernels rely on products of bytes that −128 would make too large.
    """
    top = (1 << (bits - 1)) - 1
    return (-top if bits == 8 else -top - 1), top


def weight_scales(w: Array, bits: int) -> Float:
    """Scale of each output channel (axis 0), float64, shape (O,).

    8 bits: the smallest that clips nothing, max|W| / 127.  Fewer: the share of it with the smallest squared error per
    channel (clipping search, factors 1.00 to 0.40).  An all-zero channel gets a finer scale than any other.
    """
    flat = w.reshape(len(w), -1).astype(np.float64)
    lo, hi = weight_range(bits)
    base = np.maximum(flat.max(axis=1) / hi, flat.min(axis=1) / lo)
    # A channel of zeros still has a bias, which is rounded to steps of its scale: a fine one costs nothing.
    base = np.where(base > 0, base, base[base > 0].min(initial=1.0) * 2.0**-10)
    if bits >= 8:
        return np.asarray(base)
    best: Float = np.empty_like(base)
    for start in range(0, len(flat), step := max(1, _IN_CACHE // max(1, flat.shape[1]))):
        part = slice(start, start + step)
        best[part] = _searched(flat[part], base[part], bits)
    return best


def _searched(flat: Float, base: Float, bits: int) -> Float:
    """Of each row the scale with the smallest squared error."""
    best, best_error = base, np.full(len(flat), np.inf)
    for shrink in _SHRINK:
        scale = base * shrink
        missed = _round(flat, scale, bits)
        missed *= scale[:, None]
        missed -= flat
        error = np.square(missed, out=missed).sum(axis=1)
        better = error < best_error
        best, best_error = np.where(better, scale, best), np.where(better, error, best_error)
    return np.asarray(best)


def _round(flat: Float, scale: Float, bits: int) -> Float:
    found = flat / scale[:, None]
    np.rint(found, out=found)
    return np.asarray(np.clip(found, *weight_range(bits), out=found))


def quantize_weights(w: Array, bits: int, scales: Float) -> Array:
    """Round to nearest on the grid of each output channel: int8 within `weight_range`, w's shape."""
    return _round(w.reshape(len(w), -1).astype(np.float64), scales, bits).reshape(w.shape).astype(np.int8)


def packed_bytes(numel: int, bits: int) -> int:
    """Bytes of `numel` integers of `bits` bits, packed without gaps."""
    return -(-numel * bits // 8)


def pack_bits(values: Array, bits: int) -> bytes:
    """Pack signed or unsigned integers of 1 to 8 bits at their real width, little-endian bit order."""
    flat = np.asarray(values).astype(np.int64).ravel() & ((1 << bits) - 1)
    eights = np.pad(flat, (0, -len(flat) % 8)).reshape(-1, 8).astype("<u8")
    words = np.zeros(len(eights), "<u8")
    for place in range(8):
        words |= eights[:, place] << np.uint64(place * bits)
    # Eight values are `bits` bytes.
    return words.view(np.uint8).reshape(-1, 8)[:, :bits].tobytes()[: packed_bytes(len(flat), bits)]


def unpack_bits(data: bytes, bits: int, count: int, signed: bool) -> Array:
    """The inverse of `pack_bits`: int8 or uint8, shape (count,)."""
    eights = -(-count // 8)
    padded = np.zeros(eights * bits, np.uint8)
    size = packed_bytes(count, bits)
    padded[:size] = np.frombuffer(data, np.uint8, size)
    words = np.zeros((eights, 8), np.uint8)
    words[:, :bits] = padded.reshape(eights, bits)
    whole, shift = words.view("<u8")[:, 0], np.uint8(8 - bits)
    found = np.empty((eights, 8), np.uint8)
    for place in range(8):
        found[:, place] = (whole >> np.uint64(place * bits)).astype(np.uint8)
    # The highest bit of a value becomes that of its byte and is spread from there; bits of its neighbour go.
    found <<= shift
    flat = found.reshape(-1)[:count]
    return flat.view(np.int8) >> shift.astype(np.int8) if signed else flat >> shift
