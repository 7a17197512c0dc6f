"""Weights for an instruction that adds two products in 16 bits with saturation, so that it provably does not.

Inputs are never negative and at most q, so two products fit where weights of one sign add up to at most `most` =
⌊32767/q⌋ in magnitude.  What of a pair is beyond that is taken out of its second weight: the **heads** remain, the
**rests** are multiplied in extra steps, listed for every block of outputs.

Which inputs are a pair is a choice.  With a `span` of 2 they are neighbours in memory.  With a span of SPAN every
output pairs its own weights among so many inputs, and a shuffle of bytes brings them together in its lane: the largest
with the smallest, the second largest with the second smallest, and so on: if any choice leaves no rests, this does.

Four products fit by the same bound.  Which weights such a **quad** has is a choice too: one of a few (`_QUADS`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from qcompile.ir import Array
from targets._tvm.packing import STEP, direct

SPAN = 16
"""Inputs that a shuffle of bytes reaches."""

WINDOW = 8
"""Weights of an output in two steps of a span: neighbours in memory, and each other's summands in 16 bits.

Runs of inputs are padded to a multiple of it, so their last span may be of one window.
"""

_WEIGHTS_AT_ONCE = 1 << 18
"""Packing takes nine bytes for each of them."""

_Quad = tuple[int, int, int, int]
"""Ranks of the weights of a sum of four products, in ascending order."""

_QUADS: dict[int, tuple[tuple[_Quad, ...], ...]] = {
    SPAN: (
        ((0, 7, 8, 15), (1, 6, 9, 14), (2, 5, 10, 13), (3, 4, 11, 12)),
        ((0, 10, 11, 12), (1, 7, 9, 13), (2, 4, 8, 14), (3, 5, 6, 15)),
        ((0, 8, 11, 12), (1, 7, 10, 13), (2, 6, 9, 14), (3, 4, 5, 15)),
        ((0, 8, 9, 12), (1, 5, 10, 14), (2, 4, 11, 13), (3, 6, 7, 15)),
        ((0, 11, 12, 13), (1, 6, 9, 14), (2, 4, 10, 15), (3, 5, 7, 8)),
        ((0, 9, 11, 12), (1, 5, 7, 14), (2, 3, 4, 15), (6, 8, 10, 13)),
        ((0, 7, 11, 12), (1, 6, 10, 13), (2, 5, 9, 14), (3, 4, 8, 15)),
        ((0, 9, 10, 12), (1, 6, 11, 13), (2, 5, 8, 14), (3, 4, 7, 15)),
    ),
    WINDOW: (
        ((0, 3, 4, 7), (1, 2, 5, 6)),
        ((0, 4, 5, 6), (1, 2, 3, 7)),
        ((0, 3, 5, 6), (1, 2, 4, 7)),
    ),
}
"""By inputs of a span, ways to share out the ranks of a lane's weights to its sums of four products; a window has two.

The first way pairs opposite ranks and leaves a rest only where every way does.  The others were chosen one by one, each
for most of the normally distributed weights whose sums did not fit by those before it: of the lanes of 16 weights that
any way fits, with 256 weights to a channel, the first one fits 83 % and all together 97 %.
"""


def _places(quads: Sequence[_Quad]) -> list[int]:
    """The rank in every place of [windows, steps, quads of a window, 2]: a quad's outer ranks first, then its inner."""
    windows = (quads[i : i + 2] for i in range(0, len(quads), 2))
    return [quad[i] for window in windows for pair in ((0, 3), (1, 2)) for quad in window for i in pair]


class _Shared:
    """What several recipes are made of, found once and kept until the last of them has it; they are packed in a row.

    Args:
        find: of weights and the arguments of a recipe.
        users: how many recipes.
    """

    def __init__(self, find: Callable[..., Any], users: int) -> None:
        self._find, self._users = find, users
        self._kept: dict[str, tuple[Array | None, dict[str, Any], Any, int]] = {}

    def __call__(self, w: Array, shape: dict[str, Any]) -> Any:
        known, asked, found, left = self._kept.pop("last", (None, {}, None, 0))
        if known is not w or asked != shape:
            found, left = self._find(w, **shape), self._users
        if left > 1:
            self._kept["last"] = w, shape, found, left - 1
        return found


def _pieces(w: Array, groups: int, lanes: int, **shape: Any) -> list[Array]:
    """The weights of a few blocks at a time; with several groups, whose blocks read other inputs each, all at once."""
    few = lanes * max(1, _WEIGHTS_AT_ONCE // (lanes * w[0].size)) if groups == 1 else len(w)
    return [w[first : first + few] for first in range(0, len(w), few)]


def _split(w: Array, most: int, span: int = 2, **shape: Any) -> tuple[list[Array], list[Array]]:
    """Heads and rests of whole spans, and of what is left of a run, if anything, which is one window.

    Args:
        most: at least 128.
        span: 2 or SPAN.
        shape: arguments of `direct`.

    Returns:
        int8[blocks, KH, runs, spans, lanes, bytes of a span] of each; spans of 2 come two at a time, as a step.
    """
    size = max(span, STEP)
    whole = direct(w, **shape, step=STEP if span == 2 else WINDOW)[:, :, :, :, 0].swapaxes(3, 4)
    rows = whole.reshape(*whole.shape[:4], -1)
    end = rows.shape[4] // size * size
    cuts = [(rows[..., :end], size), (rows[..., end:], WINDOW)]
    spans = [part.reshape(*part.shape[:4], -1, cut).swapaxes(3, 4) for part, cut in cuts if part.size]
    rests = [_excess(part, min(span, part.shape[5]), most) for part in spans]
    return [part - rest for part, rest in zip(spans, rests, strict=True)], rests


def _joined(parts: Sequence[Array]) -> Array:
    """Parts of runs, one behind the other."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=3)


def _in_steps(parts: Sequence[Array]) -> Array:
    """Heads or rests as int8[blocks, KH, runs, steps, lanes, STEP]."""
    pieces = [part.reshape(*part.shape[:5], -1, STEP).swapaxes(4, 5) for part in parts]
    return _joined([piece.reshape(*piece.shape[:3], -1, *piece.shape[5:]) for piece in pieces])


def _keys(rows: Array, span: int) -> Array:
    """int16[…, span]: 16 times a weight plus its number in the span; in ascending order, but for two neighbours."""
    keys: Array = rows.astype(np.int16) * SPAN + np.arange(span, dtype=np.int16)
    return keys if span == 2 else np.sort(keys, axis=-1)


def _excess(weights: Array, span: int, most: int) -> Array:
    """What the second weights of all pairs give away: int8[…, a multiple of `span` bytes] of either."""
    rows = weights.reshape(-1, span)
    keys, rest = _keys(rows, span), np.zeros_like(rows)
    pairs, seconds = (keys >> 4)[:, : span // 2], keys[:, span // 2 :][:, ::-1]
    # The magnitude of the sum is beyond `most` ≥ 128 only where both have one sign.
    sums = pairs + (seconds >> 4)
    where = np.nonzero(np.abs(sums) > most)
    rest[where[0], seconds[where] & SPAN - 1] = sums[where] - np.sign(sums[where]) * most
    return rest.reshape(weights.shape)


def _found_rests(w: Array, most: int, span: int = 2, **shape: Any) -> tuple[Array, Array]:
    """Steps with rests, block by block: int8[steps, lanes, STEP], and int[4, steps]: block, row, run, step."""
    rests, places, blocks = [], [], 0
    for piece in _pieces(w, **shape):
        steps = _in_steps(_split(piece, most, span, **shape)[1])
        # Rests of different pairs may be neighbours in memory, whose sum is too much again.
        again = _excess(steps, 2, most)
        both = np.stack([steps - again, again], axis=3)
        block, row, run, part, step = np.nonzero(both.any(axis=(5, 6)))
        rests.append(both[block, row, run, part, step])
        places.append(np.stack([block + blocks, row, run, step]))
        blocks += len(steps)
    return np.concatenate(rests), np.concatenate(places, axis=1)


def _rest_steps(w: Array, **split: Any) -> tuple[Array, Array]:
    """`_found_rests`, for the three tables of a kernel."""
    found: tuple[Array, Array] = _SHARED_RESTS(w, split)
    return found


def pair_heads(w: Array, **split: Any) -> Array:
    """`direct` without the excess of neighbours; arguments as of `_split`."""
    return _in_steps(_split(w, **split)[0])


def pair_rests(w: Array, **split: Any) -> Array:
    """int8[steps with rests + 1, lanes, 4]: zeros last."""
    return np.pad(_rest_steps(w, **split)[0], ((0, 1), (0, 0), (0, 0)))


def pair_offsets(w: Array, strides: Sequence[int], **split: Any) -> Array:
    """int32[steps with rests + 1]: bytes from the first input of an output to those of the step.

    `strides`: bytes from one kernel row, and run, to the next.
    """
    _, row, run, step = _rest_steps(w, **split)[1]
    return np.pad(row * strides[0] + run * strides[1] + step * STEP, (0, 1)).astype(np.int32)


def pair_starts(w: Array, lanes: int, **split: Any) -> Array:
    """int32[blocks + 1]: where the steps of a block begin in `pair_rests`."""
    blocks = _rest_steps(w, lanes=lanes, **split)[1][0]
    return np.searchsorted(blocks, np.arange(-(-len(w) // lanes) + 1)).astype(np.int32)


_Windows = tuple[Array, Array, Array]


def _windows(w: Array, **shape: Any) -> _Windows:
    """`_found_windows`, for the two tables of a kernel."""
    found: _Windows = _SHARED_WINDOWS(w, shape)
    return found


def _arranged(heads: Array, most: int) -> tuple[Array, Array]:
    """Every lane's weights in the first way of `_QUADS` by which both windows fit, else one of those with most that do.

    Args:
        heads: int8[..., bytes of a span], whose opposite ranks fit in pairs.

    Returns:
        int16[..., bytes of a span], as of `_keys`, in the places of `_places`; bool[..., windows], whether they fit.
    """
    span = heads.shape[-1]
    keys = _keys(heads, span).reshape(-1, span)
    ranked = np.ascontiguousarray((keys >> 4).T)
    first, *others = _QUADS[span]
    placed, fits, todo = keys[:, _places(first)], _fitting(ranked, first, most), np.arange(len(keys))
    for quads in others:
        todo = todo[~fits[:, todo].all(axis=0)]
        found = _fitting(ranked[:, todo], quads, most)
        is_better = found.sum(axis=0) > fits[:, todo].sum(axis=0)
        better = todo[is_better]
        fits[:, better] = found[:, is_better]
        placed[better] = keys[better][:, _places(quads)]
    return placed.reshape(heads.shape), fits.T.reshape(*heads.shape[:-1], -1)


def _fitting(ranked: Array, quads: Sequence[_Quad], most: int) -> Array:
    """bool[windows, n]: whether the sums of a window fit 16 bits; none do where a pair of the other window does not.

    `ranked`: int16[bytes of a span, n], weights by rank.
    """
    above, below = np.maximum(ranked, 0), np.maximum(-ranked, 0)
    fits = [
        np.maximum(*(part[a] + part[b] + part[c] + part[d] for part in (above, below))) <= most
        for a, b, c, d in quads
    ]  # fmt: skip
    pairs = [np.abs(ranked[i] + ranked[j]) <= most for a, b, c, d in quads for i, j in ((a, d), (b, c))]
    windows: Array = np.logical_and(fits[::2], fits[1::2]) & np.all(pairs, axis=0)
    return windows


def _found_windows(w: Array, **shape: Any) -> _Windows:
    """The windows of every block: first both of a span, one behind the other, where the four products of every quad
    always fit 16 bits together; then single windows that fit; then the others.

    Returns:
        packed: `window_weights`.
        numbers: int[blocks, windows], of the window in (KH, runs, windows of a run).
        counts: int[blocks, 2], how many spans fit as a whole, and how many windows fit, with those of whole spans.
    """
    found = [_windows_of_blocks(piece, **shape) for piece in _pieces(w, **shape)]
    packed, numbers, counts = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return packed, numbers, counts


def _windows_of_blocks(w: Array, most: int, **shape: Any) -> _Windows:
    """`_found_windows` of one piece."""
    heads = _split(w, most, SPAN, **shape)[0]
    blocks, lanes, parts, ranks = heads[0].shape[0], heads[0].shape[4], [], []
    for part in heads:
        keys, fits_lane = _arranged(part, most)
        steps = keys.reshape(*part.shape[:5], -1, 2, STEP).transpose(0, 1, 2, 3, 5, 6, 4, 7)
        parts.append(steps.reshape(*part.shape[:3], -1, 2, lanes, STEP))
        fits = np.all(fits_lane, axis=4)
        is_single = np.logical_not(np.all(fits, axis=4, keepdims=True) & (fits.shape[4] > 1))
        ranks.append(np.where(fits, is_single.astype(np.int8), np.int8(2)).reshape(*fits.shape[:3], -1))
    rank = _joined(ranks).reshape(blocks, -1)
    order = np.argsort(rank, axis=1, kind="stable")
    counts = np.stack([(rank == 0).sum(axis=1) // 2, (rank < 2).sum(axis=1)], axis=1)
    steps = _joined(parts).reshape(blocks, -1, 2, lanes, STEP)[np.arange(blocks)[:, None], order]
    return np.stack([steps & SPAN - 1, steps >> 4], axis=3).astype(np.int8), order, counts


def window_weights(w: Array, **shape: Any) -> Array:
    """int8[blocks, windows, 2 steps, 2, lanes, 4]: the number of each input in its span, then the weights.

    Arguments as of `_split`.
    """
    return _windows(w, **shape)[0]


def window_table(w: Array, most: int, strides: Sequence[int], **shape: Any) -> Array:
    """int32[blocks, 2 + windows]: how many spans, and then how many windows, from the first one, may be added in
    16 bits; of every window the bytes from the first input of an output to the first of its span.

    `strides`: bytes from one kernel row, and run, to the next.
    """
    _, numbers, counts = _windows(w, most=most, **shape)
    rows, runs, windows = direct(_pieces(w, **shape)[0], **shape, step=WINDOW).shape[1:4]
    row, run, window = np.unravel_index(numbers, (rows, runs, windows))
    places = row * strides[0] + run * strides[1] + window // (SPAN // WINDOW) * SPAN
    return np.concatenate([counts, places], axis=1).astype(np.int32)


_SHARED_WINDOWS, _SHARED_RESTS = _Shared(_found_windows, 2), _Shared(_found_rests, 3)
