"""Weights for an instruction that adds two products in 16 bits with saturation, so that it provably does not.

Inputs are never negative and at most q, so two products fit where weights of one sign add up to at most `most` =
⌊32767/q⌋ in magnitude.  What of a pair is beyond that is taken out of its second weight: the **heads** remain, the
**rests** are multiplied in extra steps, listed for every block of outputs.

Which inputs are a pair is a choice.  With a `span` of 2 they are neighbours in memory.  With a span of SPAN every
output pairs its own weights among so many inputs, and a shuffle of bytes brings them together in its lane: the largest
with the smallest, the second largest with the second smallest, and so on: if any choice leaves no rests, this does.
"""

from __future__ import annotations

from collections.abc import Sequence
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

_PLACES = {SPAN: (0, 15, 1, 14, 7, 8, 6, 9, 2, 13, 3, 12, 5, 10, 4, 11), WINDOW: (0, 7, 1, 6, 3, 4, 2, 5)}
"""By inputs of a span, the rank of the weight in every place of [windows, steps, pairs, 2].  A window adds the pair of
ranks i and 15 − i to that of ranks 7 − i and 8 + i; where it is the only one, that of i and 7 − i to that of 3 − i and
4 + i."""


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


def _rest_steps(w: Array, most: int, span: int = 2, **shape: Any) -> tuple[Array, tuple[Array, ...]]:
    """int8[blocks, KH, runs, 2, steps of STEP bytes, lanes, STEP]; where in it steps with rests are, block by block."""
    steps = _in_steps(_split(w, most, span, **shape)[1])
    # Rests of different pairs may be neighbours in memory, whose sum is too much again.
    again = _excess(steps, 2, most)
    both = np.stack([steps - again, again], axis=3)
    return both, tuple(np.nonzero(both.any(axis=(5, 6))))


def pair_heads(w: Array, **split: Any) -> Array:
    """`direct` without the excess of neighbours; arguments as of `_split`."""
    return _in_steps(_split(w, **split)[0])


def pair_rests(w: Array, **split: Any) -> Array:
    """int8[steps with rests + 1, lanes, 4]: zeros last."""
    steps, found = _rest_steps(w, **split)
    return np.pad(steps[found], ((0, 1), (0, 0), (0, 0)))


def pair_offsets(w: Array, strides: Sequence[int], **split: Any) -> Array:
    """int32[steps with rests + 1]: bytes from the first input of an output to those of the step.

    `strides`: bytes from one kernel row, and run, to the next.
    """
    _, row, run, _, step = _rest_steps(w, **split)[1]
    return np.pad(row * strides[0] + run * strides[1] + step * STEP, (0, 1)).astype(np.int32)


def pair_starts(w: Array, **split: Any) -> Array:
    """int32[blocks + 1]: where the steps of a block begin in `pair_rests`."""
    steps, found = _rest_steps(w, **split)
    return np.searchsorted(found[0], np.arange(len(steps) + 1)).astype(np.int32)


_Windows = tuple[Array, Array, Array]

_unused: dict[str, tuple[Array, dict[str, Any], _Windows]] = {}
"""The windows found last, while only one of the two tables that are made of them was asked for."""


def _windows(w: Array, **shape: Any) -> _Windows:
    """`_found_windows`, sorted once for the two tables of a kernel, which are packed one behind the other."""
    kept = _unused.pop("windows", None)
    if kept is not None and kept[0] is w and kept[1] == shape:
        return kept[2]
    found = _found_windows(w, **shape)
    _unused["windows"] = w, shape, found
    return found


def _found_windows(w: Array, most: int, **shape: Any) -> _Windows:
    """The windows of every block, those first whose four products of a pair of pairs always fit 16 bits together.

    Returns:
        keys: int16[blocks, windows, 2 steps, lanes, 4], as of `_keys`.
        numbers: int[blocks, windows], of the window in (KH, runs, windows of a run).
        fitting: int[blocks], how many fit.
    """
    heads = _split(w, most, SPAN, **shape)[0]
    blocks, lanes, parts = heads[0].shape[0], heads[0].shape[4], []
    for part in heads:
        span = part.shape[5]
        keys = _keys(part, span)[..., list(_PLACES[span])]
        steps = keys.reshape(*part.shape[:5], span // WINDOW, 2, STEP).transpose(0, 1, 2, 3, 5, 6, 4, 7)
        parts.append(steps.reshape(*part.shape[:3], -1, 2, lanes, STEP))
    steps = _joined(parts).reshape(blocks, -1, 2, lanes, STEP)
    pairs = (steps >> 4).reshape(*steps.shape[:4], 2, 2)
    sums = [np.maximum(sign * pairs, 0).sum(axis=(2, 5), dtype=np.int16) for sign in (1, -1)]
    fits = np.all(np.maximum(*sums) <= most, axis=(2, 3))
    order = np.argsort(~fits, axis=1, kind="stable")
    return steps[np.arange(blocks)[:, None], order], order, fits.sum(axis=1)


def span_weights(w: Array, most: int, **shape: Any) -> Array:
    """int8[blocks, windows, 2 steps, 2, lanes, 4]: the number of each input in its span, then the weights."""
    keys = _windows(w, most=most, **shape)[0]
    return np.stack([keys & SPAN - 1, keys >> 4], axis=3).astype(np.int8)


def span_table(w: Array, most: int, strides: Sequence[int], **shape: Any) -> Array:
    """int32[blocks, 1 + windows]: how many windows, from the first one, may be added in 16 bits; of every window the
    bytes from the first input of an output to the first of its span.

    `strides`: bytes from one kernel row, and run, to the next.
    """
    _, numbers, fitting = _windows(w, most=most, **shape)
    _, rows, runs, windows = direct(w, **shape, step=WINDOW).shape[:4]
    row, run, window = np.unravel_index(numbers, (rows, runs, windows))
    places = row * strides[0] + run * strides[1] + window // (SPAN // WINDOW) * SPAN
    return np.concatenate([fitting[:, None], places], axis=1).astype(np.int32)
