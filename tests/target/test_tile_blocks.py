"""How convolutions are cut into AMX tiles, and the right to use them."""

from __future__ import annotations

import ctypes
import platform
import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from qcompile.errors import DeviceError
from qcompile.pm.registry import find_target, host_target
from targets._tvm.float_scan import assembly_float_operations
from targets._tvm.kernels.conv_direct import Geometry
from targets._tvm.packing import nibble_tiles, tiles
from targets.x86_64 import amx, permission
from targets.x86_64.target import X86_AMX
from targets.x86_64.tile_blocks import Runs, choose_blocks, choose_runs


def geometry(channels: int, out: int, kernel: int, size: int, *, pixel: int | None = None, stride: int = 1) -> Geometry:
    """A square convolution whose output is size×size, padded to keep it."""
    pixel, pad = pixel or channels, kernel // 2
    row = (size * stride + 2 * pad) * pixel
    w = np.zeros((out, channels, kernel, kernel), dtype=np.int8)
    return Geometry(w, 1, size, size, pixel, row, (stride, stride), (1, 1), 0, out)


@pytest.mark.parametrize(
    ("channels", "kernel", "runs"),
    [
        (3, 7, Runs(True, 1, 21, 1, 24)),
        (16, 3, Runs(True, 1, 48, 1, 48)),
        (64, 3, Runs(False, 3, 64, 1, 64)),
        (96, 3, Runs(True, 1, 288, 5, 60)),
        (130, 1, Runs(False, 1, 130, 3, 44)),
    ],
)
def test_steps_are_as_few_as_can_be(channels: int, kernel: int, runs: Runs) -> None:
    found = choose_runs(geometry(channels, 16, kernel, 8))
    assert found == runs
    assert 0 <= found.surplus < amx.ROW_BYTES


def test_dilated_taps_are_not_neighbours() -> None:
    assert not choose_runs(replace(geometry(16, 16, 3, 8), dilation=(2, 2))).merged


def test_blocks_follow_the_image() -> None:
    # 7×7 with its borders is a sequence of 61 pixels: 4 tiles, so that weights are read once.
    small = choose_blocks(geometry(512, 512, 3, 7), 32, 72, 64)
    assert (small.whole, small.tiles, small.rows) == (True, 4, 16)
    assert not choose_blocks(geometry(512, 512, 3, 7, stride=2), 32, 72, 64).whole
    large = choose_blocks(geometry(128, 128, 3, 28), 8, 18, 64)
    assert (large.whole, large.rows, large.columns, large.accumulators) == (False, 14, 2, 4)
    assert choose_blocks(geometry(16, 16, 3, 32), 1, 3, 48).groups == 1
    # Two tiles of pixels and two of weights are fewer loads than one and four.
    square = choose_blocks(geometry(64, 64, 3, 56), 4, 9, 64)
    assert (square.tiles, square.groups) == (2, 2)


def test_configuration_is_what_the_processor_reads() -> None:
    text = struct.pack("<16i", *amx.configuration(14, 48))
    assert text[0] == 1 and len(text) == 64
    assert struct.unpack("<8H", text[16:32]) == (64, 64, 64, 64, 48, 48, 64, 64)
    assert tuple(text[48:56]) == (14, 14, 14, 14, 14, 14, 12, 12)


def test_packed_weights_keep_every_weight_once() -> None:
    rng = np.random.default_rng(0)
    w = rng.integers(-127, 128, (20, 5, 2, 3)).astype(np.int8)
    for merged, chunks, chunk in ((True, 1, 40), (False, 1, 8)):
        packed = tiles(w, pixel=16, merged=merged, chunks=chunks, chunk=chunk)
        assert packed.shape == (2, 2 * (1 if merged else 3), chunk // 4, 16, 4)
        assert packed.astype(np.int64).sum() == w.astype(np.int64).sum()
        # Output 17, kernel row 1, tap 2, channel 3.
        step, byte = (1, 2 * 16 + 3) if merged else (5, 3)
        assert packed[1, step, byte // 4, 1, byte % 4] == w[17, 3, 1, 2]


@pytest.mark.parametrize("chunk", [64, 20])
def test_nibbles_hold_two_vectors_in_one(chunk: int) -> None:
    w = np.random.default_rng(0).integers(-8, 8, (20, chunk, 1, 3)).astype(np.int8)
    shape = {"pixel": chunk, "merged": False, "chunks": 1, "chunk": chunk}
    whole = tiles(w, **shape).reshape(6, -1)
    packed = nibble_tiles(w, **shape, behind=2)
    assert (packed.dtype, packed.shape) == (np.uint8, (8, -(-whole.shape[1] // 128), 64))
    low, high = (packed << 4).view(np.int8) >> 4, packed.view(np.int8) >> 4
    unpacked = np.stack([low, high], axis=2).reshape(8, -1)
    assert np.array_equal(unpacked[:6, : whole.shape[1]], whole)
    assert not unpacked[:, whole.shape[1] :].any() and not unpacked[6:].any()


def test_refused_permission_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        def syscall(self, *args: int) -> int:
            assert args == (158, 0x1023, 18)
            return -1

    def refusing(*_: Any, **__: Any) -> Library:
        return Library()

    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(ctypes, "CDLL", refusing)
    with pytest.raises(DeviceError, match=r"tile registers of Intel AMX, and Linux refuses") as caught:
        permission.request_permission()
    assert "x86-vnni" in str(caught.value)
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    with pytest.raises(DeviceError, match="Darwin on x86_64 does not offer them"):
        permission.request_permission()


def test_float_scan_tells_tiles_of_floats_from_tiles_of_integers() -> None:
    names = ("ldtilecfg", "tileloadd", "tilestored", "tilezero", "tilerelease", "tdpbusd", "tdpbf16ps", "tdpfp16ps")
    listing = "".join(f"\t{name} %tmm1, %tmm2, %tmm3\n" for name in names)
    assert assembly_float_operations("f", listing, "x86_64") == ["f: tdpbf16ps", "f: tdpfp16ps"]


def test_cpu_means_amx_where_the_processor_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QCOMPILE_CPU_FEATURES", " ".join((*X86_AMX.features, "avx2")))
    assert host_target() is find_target("x86-amx")
    monkeypatch.setenv("QCOMPILE_CPU_FEATURES", " ".join((*(set(X86_AMX.features) - {"amx_int8"}), "avx2")))
    assert host_target().name == "x86-vnni"
