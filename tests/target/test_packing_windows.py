"""Ways to share out a lane's weights to sums of 16 bits (`packing_split`)."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from targets._tvm import packing_split
from targets._tvm.packing_split import _QUADS, SPAN, WINDOW, pair_rests, window_table, window_weights
from targets._tvm.recipes import Recipe
from targets._tvm.runner import pack_parameters

MOST = 128
SHAPE = {"groups": 1, "lanes": 8, "merged": True}


def reach(weights: np.ndarray) -> np.ndarray:
    """The larger one of the sums of either sign over the last axis."""
    wide = weights.astype(int)
    return np.maximum(np.maximum(wide, 0).sum(axis=-1), np.maximum(-wide, 0).sum(axis=-1))


@pytest.mark.parametrize("span", [SPAN, WINDOW])
def test_every_way_shares_out_all_ranks(span: int) -> None:
    ways = _QUADS[span]
    assert len(set(ways)) == len(ways)
    for quads in ways:
        assert sorted(rank for quad in quads for rank in quad) == list(range(span))
        assert all(list(quad) == sorted(quad) for quad in quads)


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.int8, st.tuples(st.integers(1, 17), st.integers(1, 70)), elements=st.integers(-128, 127)),
    st.sampled_from([1, 2, 4]),
)
def test_windows_hold_the_weights_and_those_counted_fit(flat: np.ndarray, calm: int) -> None:
    """All weights come back from the windows and the rests; sums of counted windows fit, and pairs of all."""
    w = (flat // calm).astype(np.int8)[:, :, None, None]
    table = window_table(w, most=MOST, strides=[0, 0], **SHAPE)
    packed = window_weights(w, most=MOST, **SHAPE)
    blocks, windows = packed.shape[:2]
    numbers, weights = packed[:, :, :, 0], packed[:, :, :, 1]
    pairs = weights.reshape(blocks, windows, 2, 8, 2, 2)
    assert reach(pairs).max() <= MOST
    found = np.zeros((blocks * 8, windows * WINDOW + WINDOW), dtype=int)
    for block, (spans, fitting, *places) in enumerate(table):
        assert 0 <= 2 * spans <= fitting <= windows
        for window in range(windows):
            both = pairs[block, window].transpose(1, 2, 0, 3).reshape(8, 2, 4)
            if window < fitting:
                assert reach(both).max() <= MOST
            if window < 2 * spans and window % 2 == 0:
                assert places[window] == places[window + 1]
            for lane in range(8):
                at = places[window] + numbers[block, window, :, lane].reshape(-1)
                np.add.at(found[block * 8 + lane], at, weights[block, window, :, lane].reshape(-1))
    if len(pair_rests(w, most=MOST, span=SPAN, **SHAPE)) == 1:
        np.testing.assert_array_equal(found[: len(flat), : flat.shape[1]], w[:, :, 0, 0])
        assert not found[len(flat) :].any() and not found[:, flat.shape[1] :].any()


def test_most_spans_of_normal_weights_fit() -> None:
    """Of 256 weights to a channel more than half of the spans fit as a whole; by the first way alone it is a fifth."""
    drawn = np.random.default_rng(0).standard_normal((512, 256))
    w = np.round(drawn / np.abs(drawn).max(axis=1, keepdims=True) * 127).astype(np.int8)[:, :, None, None]
    table = window_table(w, most=MOST, strides=[0, 0], **SHAPE)
    assert table[:, 0].mean() > 0.5 * 16
    assert table[:, 1].mean() > 0.65 * 32


@pytest.mark.parametrize("groups", [1, 11])
def test_a_few_blocks_at_a_time_are_packed_as_all_at_once(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    w = np.clip(np.rint(rng.normal(0, 120, (44, 20, 3, 3))), -128, 127).astype(np.int8)
    shape = {"most": MOST, "groups": groups, "lanes": 8, "merged": False}
    recipes = [
        lambda w: window_table(w, strides=[500, 20], **shape),
        lambda w: window_weights(w, **shape),
        lambda w: pair_rests(w, span=SPAN, **shape),
        lambda w: packing_split.pair_offsets(w, span=SPAN, strides=[500, 20], **shape),
        lambda w: packing_split.pair_starts(w, span=SPAN, **shape),
    ]
    whole = [recipe(w.copy()) for recipe in recipes]
    assert len(whole[2]) > len(w)
    monkeypatch.setattr(packing_split, "_WEIGHTS_AT_ONCE", 3 * 8 * 20 * 9)
    for recipe, expected in zip(recipes, whole, strict=True):
        found = recipe(w.copy())
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_what_shares_weights_is_read_and_searched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Constants of a loaded graph are another array each time they are asked for."""
    rng = np.random.default_rng(2)
    known = {name: rng.integers(-127, 128, (8, 40, 1, 1)).astype(np.int8) for name in ("v", "w")}
    reads, searches = Counter[str](), Counter[tuple[str, bytes]]()

    class Stored(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            reads[name] += 1
            return known[name].copy()

    for shared in (packing_split._SHARED_WINDOWS, packing_split._SHARED_RESTS):
        find = shared._find

        def counted(w: np.ndarray, find: Any = find, **shape: Any) -> Any:
            searches[find.__name__, w.tobytes()] += 1
            return find(w, **shape)

        monkeypatch.setattr(shared, "_find", counted)
    strides = {"strides": [0, 0]}
    windows = (("window_table", strides), ("window_weights", {}))
    rests = (("pair_rests", {}), ("pair_offsets", strides), ("pair_starts", {}))
    recipes = [
        Recipe(name, (weights,), {"most": MOST, **SHAPE, **more, **span})
        for weights in known
        for group, span in ((windows, {}), (rests, {"span": SPAN}))
        for name, more in group
    ]
    expected = [recipe.pack({name: array.copy() for name, array in known.items()}) for recipe in recipes]
    searches.clear()
    offsets = np.cumsum([0, *[made.nbytes for made in expected]])
    described = {
        "params_bytes": int(offsets[-1]),
        "constants": [[int(at), *recipe.to_json()] for at, recipe in zip(offsets, recipes, strict=False)],
    }
    params = pack_parameters(described, SimpleNamespace(consts=Stored()))
    assert params.tobytes() == b"".join(made.tobytes() for made in expected)
    assert reads == {"v": 1, "w": 1}
    assert list(searches.values()) == [1, 1, 1, 1]
