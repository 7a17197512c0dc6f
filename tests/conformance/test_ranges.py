"""Kernels at the edges of what proves them exact, and at sizes that take every loop of theirs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from op_cases import Cases, samples
from test_operators import backend_of, choices

from passes.lower.plan_memory import plan_program
from qcompile.semantics import interp
from targets._tvm.kernels import conv_direct, winograd
from targets._tvm.kernels.winograd_form import F2, F4, Form
from targets._tvm.packing import direct
from targets._tvm.packing_split import window_table, window_weights
from targets.x86_64.conv_sums import longest_window


def differing(name: str, cases: Cases, variant: str, inputs: Any, folder: Path) -> tuple[list[str], list[str]]:
    """Run the graph with a variant: the implementations it was offered (all kernels'), the outputs that differ."""
    backend, graph = backend_of(name, 16), cases.graph()
    given = samples(graph) if inputs is None else {p.name: inputs for p in graph.inputs}
    planned = plan_program(graph, backend.target)
    choice = choices(backend, planned, variant)
    program = replace(planned, kernels=tuple(replace(k, variant=choice[k.name]) for k in planned.kernels))
    backend.build(program, folder)
    results = backend.load(folder, graph).run([given[p.name] for p in graph.inputs])
    expected = interp.run(graph, given)
    wrong = [o.name for o, y in zip(graph.outputs, results, strict=True) if not np.array_equal(y, expected[o.name])]
    return sorted(set(choice.values())), wrong


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("x86-vnni", "vnni"),
        *(("x86-avx2", way) for way in ("madd", "maddubs-split", "maddubs-windows", "maddubs-halves")),
    ],
)
def test_weights_that_are_prefetched(name: str, variant: str, tmp_path: Path) -> None:
    """Remainders of rows and columns, fewer tiles than blocks, a single tile."""
    cases = Cases()
    for channels, out, size, kernel in (
        (64, 128, (7, 9), (3, 3)),
        (160, 416, (1, 2), (1, 1)),
        (40, 72, (15, 3), (5, 5)),
    ):
        y = cases.conv(cases.image(channels, *size), out, kernel, pad=(kernel[0] // 2,) * 4)
        cases.show(cases.requant(y, reach=1 << 18))
    cases.show(cases.requant(cases.linear(cases.input(512), 170), reach=1 << 18))
    weights = [node for node in cases.graph().nodes if node.const("w")]
    assert all(cases.graph().const(node, "w").size >= conv_direct.FAR_BYTES for node in weights)
    assert differing(name, cases, variant, None, tmp_path)[1] == []


@pytest.mark.parametrize(
    ("name", "variant", "act", "bits"),
    [
        ("x86-vnni", "winograd-4", 8, 8),
        ("x86-vnni", "winograd-4-inline", 8, 8),
        ("x86-vnni", "winograd-2", 6, 4),
        ("x86-vnni", "winograd-2-rows", 6, 4),
        ("x86-avx2", "winograd-4", 8, 8),
        ("x86-avx2", "winograd-4-inline", 8, 8),
        ("x86-avx2", "winograd-2", 6, 4),
        # Filters of nothing but −8 are beyond what pairs of 4 bits hold.
        ("x86-avx2", "winograd-2-maddubs", 6, 3),
    ],
)
def test_winograd_in_strips(
    name: str, variant: str, act: int, bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of several strips, of tiles that stick out, with a residual addition."""
    cases = Cases()
    x, r = cases.image(64, 41, 53, dtype=f"u{act}"), cases.image(16, 41, 53)
    y = cases.conv(x, 16, (3, 3), bits=bits, pad=(1, 1, 1, 1), pad_value=3)
    cases.show(cases.requant(y, r, reach=1 << 17, zeros=(0, 7), zp=3))
    monkeypatch.setattr("targets.x86_64.backend._WEIGHING", 1)
    form = F4 if variant.startswith("winograd-4") else F2
    tile = (form.m + 2) ** 2 * 64 * np.dtype(form.dtype).itemsize
    assert tile * -(-41 // form.m) * -(-53 // form.m) > winograd.STRIP_BYTES
    used, wrong = differing(name, cases, variant, None, tmp_path)
    assert variant in used
    assert wrong == []


def extremes(form: Form, transform: Callable[[list[Any]], list[Any]], q: int, channels: int) -> Any:
    """uint8[samples, channels, m + 2, m + 2]: for each position the inputs of its largest and smallest value."""
    rows = np.array([[int(v) for v in transform(list(unit))] for unit in np.eye(form.alpha, dtype=np.int64)]).T
    wanted = [sign * np.outer(a, b) for a in rows for b in rows for sign in (1, -1)]
    return np.stack([np.broadcast_to(q * (w > 0), (channels, *w.shape)) for w in wanted]).astype(np.uint8)


def integer_inputs_4(d: list[int]) -> list[int]:
    """Bᵀ·d of F(4, 3), Lavin and Gray 2016."""
    matrix = [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0], [0, -2, -1, 2, 1, 0],
              [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]]  # fmt: skip
    return [int(v) for v in np.array(matrix) @ np.array(d)]


def integer_inputs_2(d: list[int]) -> list[int]:
    """Bᵀ·d of F(2, 3)."""
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def extreme_case(w: Any, channels: int, size: int, act: int, reach: float) -> Cases:
    cases = Cases()
    x = cases.image(channels, size, size, dtype=f"u{act}")
    zero = np.zeros(len(w), dtype=np.int32)
    y = cases.op("conv2d", x, consts={"w": w.astype(np.int8), "b": zero}, groups=1)
    cases.show(cases.requant(y, reach=reach))
    return cases


@pytest.mark.parametrize(
    ("name", "variant"),
    [("x86-vnni", "winograd-4"), ("x86-vnni", "winograd-4-inline"), ("x86-avx2", "winograd-4")],
)
@pytest.mark.parametrize(("channels", "legal"), [(115, True), (116, False)])
def test_winograd_4_at_its_bound(name: str, variant: str, channels: int, legal: bool, tmp_path: Path) -> None:
    """9·C·127·255 is below 2^25 up to C = 115; transformed values of either sign at their largest."""
    signs = [(1, 1, 1), (1, -1, 1), (-1, 1, -1), (1, -1, -1)]
    w = np.stack([np.broadcast_to(127 * np.outer(a, b), (channels, 3, 3)) for a in signs for b in signs])
    cases = extreme_case(w, channels, 6, 8, 1 << 25)
    inputs = np.concatenate(
        [extremes(F4, integer_inputs_4, 255, channels), np.full((1, channels, 6, 6), 255, dtype=np.uint8)]
    )
    used, wrong = differing(name, cases, variant, inputs, tmp_path)
    assert (variant in used) == legal
    assert wrong == []


@pytest.mark.parametrize(("channels", "legal"), [(230, True), (232, False)])
def test_winograd_4_counts_weights_of_each_sign_alone(channels: int, legal: bool, tmp_path: Path) -> None:
    """Inputs are never negative, so weights of both signs reach no further than those of one."""
    signs = np.where(np.arange(channels) % 2, 1, -1)
    w = np.stack([127 * sign * np.broadcast_to(signs[:, None, None], (channels, 3, 3)) for sign in (1, -1)])
    cases = extreme_case(w, channels, 6, 8, 1 << 25)
    given = np.stack([255 * (sign * signs > 0) for sign in (1, -1)])
    inputs = np.broadcast_to(given[:, :, None, None], (2, channels, 6, 6)).astype(np.uint8)
    used, wrong = differing("x86-avx2", cases, "winograd-4", inputs, tmp_path)
    assert ("winograd-4" in used) == legal
    assert wrong == []


@pytest.mark.parametrize(
    ("name", "variant", "total"),
    [
        ("x86-vnni", "winograd-2", 127),
        ("x86-vnni", "winograd-2-rows", 127),
        ("x86-avx2", "winograd-2", 127),
        ("x86-avx2", "winograd-2-maddubs", 64),
    ],
)
@pytest.mark.parametrize("beyond", [0, 1])
def test_winograd_2_at_its_bound(name: str, variant: str, total: int, beyond: int, tmp_path: Path) -> None:
    """6-bit activations; the transformed weights of a kernel of one sign are its sum."""
    each = (total - 8) // 8 if total == 64 else 15
    kernel = np.full((3, 3), each)
    kernel[1, 1] += total + beyond - kernel.sum()
    flips = [np.outer(a, b) for a in ((1, 1, 1), (1, -1, 1)) for b in ((1, 1, 1), (1, -1, 1))]
    w = np.stack([np.broadcast_to(s * f * kernel, (24, 3, 3)) for f in flips for s in (1, -1)] * 2)
    cases = extreme_case(w, 24, 4, 6, 24.0 * 64 * 127)
    inputs = np.concatenate([extremes(F2, integer_inputs_2, 63, 24), np.full((1, 24, 4, 4), 63, dtype=np.uint8)])
    used, wrong = differing(name, cases, variant, inputs, tmp_path)
    assert (variant in used) == (beyond == 0)
    assert wrong == []


@pytest.mark.parametrize("variant", ["maddubs-split", "maddubs-windows", "maddubs-halves"])
@pytest.mark.parametrize("act", [8, 7])
def test_pairs_that_would_saturate(act: int, variant: str, tmp_path: Path) -> None:
    """Pairs of weights at what `vpmaddubsw` holds and one beyond, of either sign; blocks without any, or with all."""
    cases, highest = Cases(), (1 << act) - 1
    most = 32767 // highest
    rng = np.random.default_rng(act)
    w = np.clip(np.rint(rng.normal(0, 36, (40, 24, 3, 3))), -127, 127).astype(np.int8)
    w[:8], w[8], w[9] = 1, 127, -128
    for channel, second in ((10, most - 100), (11, most - 99)):
        w[channel, ::2], w[channel, 1::2] = 100, min(second, 127)
        w[channel + 2] = -w[channel]
    for stride, dilation in ((1, 1), (2, 1), (1, 2)):
        x = cases.image(24, 7, 9, dtype=f"u{act}")
        geometry = {"stride": (stride, stride), "dilation": (dilation, dilation), "pad": (1, 1, 1, 1)}
        y = cases.op("conv2d", x, consts={"w": w, "b": cases.bias(40)}, groups=1, pad_value=highest, **geometry)
        cases.show(cases.requant(y, reach=float(1 << 22)))
    inputs = np.stack([np.full((24, 7, 9), highest), rng.integers(0, highest + 1, (24, 7, 9))]).astype(np.uint8)
    used, wrong = differing("x86-avx2", cases, variant, inputs, tmp_path)
    assert variant in used
    assert wrong == []


@pytest.mark.parametrize(("channels", "kernel", "windows"), [(96, 1, (24, 12)), (8, 3, (18, 2))])
@pytest.mark.parametrize("beyond", [0, 1])
def test_sums_of_16_bits_at_their_bound(
    channels: int, kernel: int, windows: tuple[int, int], beyond: int, tmp_path: Path
) -> None:
    """First weights of all steps' pairs that add up to 2184, times 15 is 32,760; with one more fewer steps fit."""
    count = channels // 2 * kernel**2
    spread = np.full(count, 2184 // count)
    spread[: 2184 % count + beyond] += 1
    w = np.ones((24, channels, kernel, kernel), dtype=np.int8)
    # Input channels 0 and 1 of every four are the first pair of a step.
    first = np.arange(channels) % 4 < 2
    w[:, first] = spread.reshape(kernel, kernel, -1).transpose(2, 0, 1)
    w[8:16] *= -1
    w[16:20, 1::2] *= -1
    packed = direct(w, groups=1, lanes=8, merged=False)
    assert longest_window(packed, 15) == windows[beyond]
    assert longest_window(-packed, 15) == windows[beyond]
    cases = extreme_case(w, channels, 5, 4, 1 << 16)
    patterns = [first, ~first, np.arange(channels) % 2 == 0, np.ones(channels)]
    rng = np.random.default_rng(0)
    inputs = np.stack([np.broadcast_to(15 * p[:, None, None], (channels, 5, 5)) for p in patterns])
    inputs = np.concatenate([inputs, rng.integers(0, 16, (2, channels, 5, 5))]).astype(np.uint8)
    used, wrong = differing("x86-avx2", cases, "maddubs", inputs, tmp_path)
    assert "maddubs" in used
    assert wrong == []


@pytest.mark.parametrize("beyond", [0, 1])
def test_windows_of_16_bits_at_their_bound(beyond: int, tmp_path: Path) -> None:
    """Four weights of 32 times 255 are 32,640; with one more, in one lane of one sign, a window is not added up."""
    w = np.full((32, 16, 1, 1), 32, dtype=np.int8)
    w[8:16] *= -1
    w[16:24, ::2] *= -1
    w[3, 7] += beyond
    w[12, 5] -= beyond
    # Half of these weights have each sign: pairs are of both, and four of one sign never meet.
    w[16, :4:2] -= beyond
    w[24:] = np.where(np.arange(16) % 4 == 0, 127, -1)[:, None, None]
    table = window_table(w, most=128, strides=[0, 0], groups=1, lanes=8, merged=True)
    assert [list(row) for row in table[:, :2]] == [[1 - beyond, 2 - beyond]] * 2 + [[1, 2]] * 2
    cases = extreme_case(w, 16, 5, 8, 1 << 18)
    rng = np.random.default_rng(0)
    patterns = [np.ones(16), np.arange(16) % 2, 1 - np.arange(16) % 2, np.arange(16) % 4 == 0]
    inputs = np.stack([np.broadcast_to(255 * p[:, None, None], (16, 5, 5)) for p in patterns])
    inputs = np.concatenate([inputs, rng.integers(0, 256, (2, 16, 5, 5))]).astype(np.uint8)
    used, wrong = differing("x86-avx2", cases, "maddubs-windows", inputs, tmp_path)
    assert "maddubs-windows" in used
    assert wrong == []


@pytest.mark.parametrize(("channels", "size", "windows"), [(5, 1, 1), (8, 1, 1), (9, 1, 2), (24, 1, 3), (3, 7, 21)])
def test_runs_that_end_in_one_window(channels: int, size: int, windows: int, tmp_path: Path) -> None:
    """Weights of one sign at their largest, whose pairs leave rests in whole spans and in half ones, and drawn ones."""
    rng = np.random.default_rng(0)
    count = channels * size * size
    rows = [
        np.full(count, 127),
        np.full(count, -128),
        np.where(np.arange(count) % 2, 127, -128),
        np.arange(count) % 128,
    ]
    w = np.concatenate([np.stack(rows), rng.integers(-128, 128, (12, count))]).reshape(-1, size, size, channels)
    w = np.ascontiguousarray(w.transpose(0, 3, 1, 2)).astype(np.int8)
    table = window_table(w, most=128, strides=[0, 0], groups=1, lanes=8, merged=True)
    assert table.shape == (2, 2 + windows)
    cases = extreme_case(w, channels, 9, 8, 1 << 20)
    edge = np.arange(channels)[:, None, None] % 2 * 255
    inputs = np.stack([np.full((channels, 9, 9), 255), np.broadcast_to(edge, (channels, 9, 9))])
    inputs = np.concatenate([inputs, rng.integers(0, 256, (4, channels, 9, 9))]).astype(np.uint8)
    used, wrong = differing("x86-avx2", cases, "maddubs-windows", inputs, tmp_path)
    assert "maddubs-windows" in used
    assert wrong == []


def test_windows_found_for_one_table_serve_only_the_other_of_the_same_weights() -> None:
    """Two layers of one shape, one table asked for behind the other's."""
    rng = np.random.default_rng(0)
    layers = [rng.integers(-127, 128, (8, 32, 1, 1)).astype(np.int8) for _ in range(2)]
    shape = {"most": 128, "groups": 1, "lanes": 8, "merged": True}
    alone = [(window_table(w.copy(), strides=[0, 0], **shape), window_weights(w.copy(), **shape)) for w in layers]
    for first, second in ((0, 1), (1, 0), (0, 0)):
        np.testing.assert_array_equal(window_table(layers[first], strides=[0, 0], **shape), alone[first][0])
        np.testing.assert_array_equal(window_weights(layers[second], **shape), alone[second][1])


def test_windows_of_odd_sizes(tmp_path: Path) -> None:
    """Runs that fill no span, groups, strides, a last block of few channels, and a residual addition."""
    cases = Cases()
    for channels, out, kernel, groups, stride in (
        (3, 20, (7, 7), 1, 2),
        (24, 40, (1, 1), 1, 1),
        (32, 32, (3, 3), 2, 1),
        (64, 8, (3, 1), 1, 2),
    ):
        x = cases.image(channels, 13, 11)
        pad = (kernel[0] // 2, kernel[1] // 2) * 2
        y = cases.conv(x, out, kernel, groups=groups, stride=(stride, stride), pad=pad)
        size = (-(-13 // stride), -(-11 // stride))
        cases.show(cases.requant(y, cases.image(out, *size), reach=1 << 18, zeros=(0, 7), zp=3))
    used, wrong = differing("x86-avx2", cases, "maddubs-windows", None, tmp_path)
    assert "maddubs-windows" in used
    assert wrong == []
