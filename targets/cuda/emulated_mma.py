"""What a matrix instruction computes, from the registers of the threads of its warps.

Layouts: PTX ISA, "Matrix fragments for mma.m16n8k32" and "for mma.m16n8k64": with g = lane // 4 and t = lane % 4 the
registers of the first factor are (row g, elements n·t to n·t + n − 1), row g + 8, and both again 4·n elements on;
those of the second (column g, the same elements), and 4·n on; n is 4 bytes or 8 nibbles.  The result's are row g,
columns 2t and 2t + 1, and row g + 8.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from targets.cuda.block import LANES

_LANE = np.arange(LANES)
_GROUP, _QUAD = _LANE // 4, _LANE % 4


def bytes_of(words: NDArray[Any], *, signed: bool) -> NDArray[np.int64]:
    """int32 registers → (threads, 4)."""
    kind = np.int8 if signed else np.uint8
    return np.ascontiguousarray(words, dtype=np.int32).view(kind).reshape(-1, 4).astype(np.int64)


def nibbles_of(words: NDArray[Any], *, signed: bool) -> NDArray[np.int64]:
    """int32 registers → (threads, 8), the lowest bits first."""
    values = np.ascontiguousarray(words, dtype=np.int32)[:, None] >> np.arange(0, 32, 4) & 15
    return (np.where(values > 7, values - 16, values) if signed else values).astype(np.int64)


def product(fragments: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    """(threads, 4): what is added to each thread's part of the result.

    Args:
        fragments: the elements of each register: four of the first factor, two of the second.
    """
    run = fragments[0].shape[1]
    by_warp = [f.reshape(-1, LANES, run) for f in fragments]
    first = np.zeros((len(by_warp[0]), 16, 8 * run), dtype=np.int64)
    second = np.zeros((len(by_warp[0]), 8 * run, 8), dtype=np.int64)
    for n in range(run):
        for i, part in enumerate(by_warp[:4]):
            first[:, _GROUP + 8 * (i % 2), 4 * run * (i // 2) + run * _QUAD + n] = part[:, :, n]
        for i, part in enumerate(by_warp[4:]):
            second[:, 4 * run * i + run * _QUAD + n, _GROUP] = part[:, :, n]
    # Exact in float64, whose matrix product is many times faster: |sum| ≤ 64·255·128.
    result = (first.astype(np.float64) @ second.astype(np.float64)).astype(np.int64)
    parts = [result[:, _GROUP + 8 * (i // 2), 2 * _QUAD + i % 2] for i in range(4)]
    return np.stack(parts, axis=2).reshape(-1, 4)
