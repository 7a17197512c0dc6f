"""Packing: pieces give what all at once would, and take little more memory than what comes of them."""

from __future__ import annotations

import ctypes
import re
import tracemalloc

import numpy as np
import pytest

from qcompile.errors import ArtifactError
from targets._tvm import packing, runner
from targets._tvm.recipes import Recipe

RNG = np.random.default_rng(11)


def weights(outputs: int, inputs: int) -> np.ndarray:
    return RNG.integers(-128, 128, (outputs, inputs, 3, 3)).astype(np.int8)


@pytest.mark.parametrize(("m", "dtype"), [(2, "int8"), (2, "int16"), (4, "int16")])
@pytest.mark.parametrize(("outputs", "inputs", "lanes", "width"), [(33, 17, 8, 20), (16, 4, 16, 4), (5, 3, 8, 4)])
def test_transformed_weights_lie_where_kernels_read_them(
    m: int, dtype: str, outputs: int, inputs: int, lanes: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    w, step = weights(outputs, inputs), 4 // np.dtype(dtype).itemsize
    u = packing.winograd_transform(w, m).astype(dtype)
    monkeypatch.setattr(packing, "_AT_ONCE", 2 * lanes * width * (m + 2) ** 2)
    packed = packing.winograd_weights(w, m, lanes, width, dtype)
    assert packed.shape == (-(-outputs // lanes), (m + 2) ** 2, width // step, lanes, step)
    expected = np.zeros_like(packed)
    for o in range(outputs):
        for i in range(inputs):
            expected[o // lanes, :, i // step, o % lanes, i % step] = u[:, o, i]
    np.testing.assert_array_equal(packed, expected)
    room = np.full(packed.nbytes + 64, 3, dtype=np.uint8)
    recipe = Recipe("winograd_weights", ("w",), {"m": m, "lanes": lanes, "width": width, "dtype": dtype})
    assert recipe.pack_into({"w": w}, room) == packed.nbytes
    assert room.tobytes() == packed.tobytes() + bytes([3] * 64)


@pytest.mark.parametrize(("outputs", "inputs", "lanes", "width"), [(33, 17, 16, 32), (16, 16, 16, 16), (5, 3, 8, 16)])
def test_weights_that_are_transformed_inline(outputs: int, inputs: int, lanes: int, width: int) -> None:
    """What kernels make of the sections is G·g·Gᵀ without the factors of G's rows."""
    w = weights(outputs, inputs)
    packed = packing.winograd_inline_weights(w, lanes, width)
    blocks, steps = -(-outputs // lanes), width // 2
    assert packed.shape == (blocks, 21 * width * lanes)
    narrow, wide = np.split(packed, [9 * width * lanes], axis=1)
    first, second, third = np.moveaxis(narrow.reshape(blocks, 3, steps, 3, lanes, 2), 1, 0).astype(np.int64)
    near, far = np.moveaxis(wide.copy().view(np.int16).reshape(blocks, 2, steps, 3, lanes, 2), 1, 0).astype(np.int64)
    rows = np.stack([first, near + second, near - second, far + 2 * second, far - 2 * second, third])
    factors = np.array([6, -4, -4, 1, 1, 12])
    plain = packing.WINOGRAD_G[4] // factors[:, None]
    u = np.einsum("rbsjlt,cj->rcblst", rows, plain).reshape(36, blocks * lanes, width)
    expected = packing.winograd_transform(w, 4) // np.kron(factors, factors)[:, None, None]
    np.testing.assert_array_equal(u[:, :outputs, :inputs], expected)
    assert not u[:, outputs:].any()
    assert not u[:, :, inputs:].any()


def test_a_small_result_is_copied_to_its_place() -> None:
    room = np.zeros(12, dtype=np.uint8)
    assert Recipe("vector", ("b",), {"size": 2}).pack_into({"b": np.array([1, -2], np.int32)}, room) == 8
    assert room.tobytes() == np.array([1, -2, 0], np.int32).tobytes()


def test_large_results_are_made_where_they_lie() -> None:
    w = weights(512, 256)
    recipe = Recipe("winograd_weights", ("w",), {"m": 4, "lanes": 8, "width": 256, "dtype": "int16"})
    room = np.zeros(8 * w.nbytes, dtype=np.uint8)
    tracemalloc.start()
    recipe.pack_into({"w": w}, room)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 4 * w.nbytes


@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_where_products_start(m: int, signed: bool, biased: bool) -> None:
    """The offset's share of every product, by the transformed weights themselves, modulo 2^32."""
    w, bias = weights(13, 9), RNG.integers(-(2**31), 2**31, 13, dtype=np.int64).astype(np.int32)
    share = packing.WINOGRAD_OFFSET * packing.winograd_transform(w, m).sum(axis=2) if m == 2 else np.zeros(())
    expected = np.zeros(((m + 2) ** 2, 16), dtype=np.int64)
    expected[:, :13] = 0 if signed else -share
    expected[m + 3, :13] = (share[m + 3] if signed and m == 2 else 0) + packing.WINOGRAD_BIAS[m] * (
        bias.astype(np.int64) if biased else 0
    )
    found = packing.winograd_start(w, *([bias] if biased else []), m=m, lanes=8, signed=signed)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, expected.astype(np.int32))


def test_packing_takes_little_more_memory_than_its_result() -> None:
    w = weights(512, 256)
    tracemalloc.start()
    packed = packing.winograd_weights(w, 4, 8, 256, "int16")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert packed.nbytes == 8 * w.nbytes
    assert most < 1.5 * packed.nbytes


def test_a_c_library_that_cannot_return_memory_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    runner.return_heap()
    asked = []

    class Other:
        def __init__(self, name: object) -> None:
            asked.append(name)

    monkeypatch.setattr(ctypes, "CDLL", Other)
    runner.return_heap()
    assert asked == [None]
    monkeypatch.setattr(runner.os, "name", "nt")
    runner.return_heap()
    assert asked == [None]


def test_a_library_packed_by_another_version_is_refused() -> None:
    known = ["plain", ["w"], {"dtype": "int8"}]
    assert Recipe.from_json(known).to_json() == known
    for name, constants, params, shown in (
        ("panels", [], {}, "panels(0 arrays)"),
        ("plain", ["w"], {"dtype": "int8", "wide": 1}, "plain(1 arrays, dtype, wide)"),
        ("plain", ["w"], {}, "plain(1 arrays)"),
    ):
        with pytest.raises(ArtifactError, match=re.escape(f"parameters are packed by {shown}")):
            Recipe.from_json([name, constants, params])
