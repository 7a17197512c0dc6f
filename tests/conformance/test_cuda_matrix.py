"""Matrix products on tensor cores: every tile, form and split equals the interpreter, thread by thread; nothing that
orders threads can be left out; shared memory is free of bank conflicts; which variant is preferred."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from op_cases import Cases, samples
from test_cuda_build import needs_compiler

from passes.lower.plan_memory import plan_program
from qcompile.ir import Array, Graph
from qcompile.pm.registry import find_target
from qcompile.semantics import interp
from qcompile.target.program import Program
from targets._tvm.context import Context
from targets._tvm.isa import SCALAR
from targets.cuda import matrix_mma, matrix_store, tiles
from targets.cuda.backend import CudaBackend
from targets.cuda.block import FOLDED_ATTRIBUTE
from targets.cuda.devices import DEVICES
from targets.cuda.emulate import Emulator
from targets.cuda.emulated import UndefinedError, surplus_turns
from targets.cuda.emulated_program import run_program
from targets.cuda.matrix import matrix_of
from targets.cuda.preference import preferred
from targets.cuda.target import ARCHITECTURES, CUDA_SM_80
from targets.cuda.tiles import BYTES, FORMS, NIBBLES, PACKED, TILES, Shape, Variant, parse

SPLIT = 3


def image_cases(c: Cases) -> None:
    """Convolutions whose rows, columns and inner dimension fit no tile."""
    for shape in (
        (64, 72, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), (7, 7), 8),
        (48, 20, (1, 1), (2, 2), (0, 0, 0, 0), (1, 1), (9, 11), 8),
        (16, 40, (3, 3), (1, 1), (2, 2, 2, 2), (2, 2), (6, 6), 4),
    ):
        y, reach = c.shaped_conv(*shape)
        z = c.requant(y, reach=reach, zp=7)
        # A reader that needs a halo.
        y = c.conv(z, 3, (3, 3), pad=(1, 1, 1, 1), pad_value=7)
        c.show(c.requant(y, reach=1 << 19, zp=7))


def close_cases(c: Cases) -> None:
    """Images of at most 4 channels: units of 8 and of 4 bytes, with and without neighbouring taps."""
    for channels, out, kernel, stride, pad, dilation, size in (
        (3, 16, (7, 7), (2, 2), (3, 3, 3, 3), (1, 1), (16, 18)),
        (3, 24, (3, 3), (2, 2), (0, 0, 1, 1), (1, 1), (12, 12)),
        (1, 8, (10, 4), (2, 2), (4, 1, 5, 1), (1, 1), (49, 10)),
        (4, 5, (3, 3), (1, 1), (2, 2, 2, 2), (2, 2), (6, 6)),
    ):
        x = c.image(channels, *size)
        y = c.conv(x, out, kernel, stride=stride, pad=pad, dilation=dilation, pad_value=3)
        c.show(c.requant(y, reach=1 << 18, zp=7))


def group_cases(c: Cases) -> None:
    """Groups: as they are, merged until they fill granules, and merged into one."""
    for groups, channels, out in ((2, 32, 64), (8, 32, 64), (4, 16, 16), (3, 9, 12), (2, 8, 48)):
        x = c.image(channels, 6, 7, dtype="u6")
        c.show(c.requant(c.conv(x, out, (3, 3), groups=groups, pad=(1, 1, 1, 1)), reach=1 << 15))
        c.show(c.conv(x, out, (3, 3), groups=groups))


def end_cases(c: Cases) -> None:
    """What follows the sums: residual additions, wide results, signs, one number for all channels."""
    for channels, out, size in ((16, 16, (8, 8)), (64, 80, (5, 6))):
        x, r = c.image(channels, *size), c.image(out, *size)
        y = c.conv(x, out, (3, 3), pad=(1, 1, 1, 1))
        c.show(c.requant(y, r, reach=1 << 17, zeros=(0, 11), zp=4))
        y = c.conv(x, out, (1, 1))
        wide = c.requant(r, y, reach=1 << 17, dtype="i32", zeros=(3, 0))
        c.show(wide)
        y = c.conv(x, out, (1, 1))
        c.show(c.requant(y, c.image(out, 1, 1), reach=1 << 17, zeros=(0, 11), zp=4))
        c.show(c.requant(c.conv(x, out, (1, 1)), reach=1 << 16, negative=True, zp=20))
        c.show(c.requant(c.conv(x, out, (1, 1)), reach=1 << 16, per="tensor", small_shift=True))


def linear_cases(c: Cases) -> None:
    """Linear layers of the caller's arrays and of the arena; outputs of 16, 8, 4 and 1 bytes at a time, and wide."""
    for shape, out in (((64,), 10), ((256,), 80), ((8, 32), 24), ((3, 36), 20), ((10, 48), 33)):
        x = c.input(*shape)
        y = c.requant(c.linear(x, out), reach=1 << 18)
        c.show(y)
        if len(shape) < 3:
            held = c.op("table", x, consts={"t": np.arange(256)[::-1].astype(np.uint8).copy()}, dtype="u8")
            c.show(c.linear(held, out))
            other = c.op("table", y, consts={"t": np.arange(256)[::-1].astype(np.uint8).copy()}, dtype="u8")
            c.show(c.requant(c.linear(held, out), other, reach=1 << 18, zeros=(0, 9), zp=5))


def nibble_cases(c: Cases) -> None:
    """Weights of 4 bits and fewer, inputs of 4 bits: the extremes of both."""
    for channels, out, kernel, bits, dtype in (
        (64, 40, (3, 3), 4, "u4"), (32, 24, (1, 1), 3, "u4"), (3, 16, (3, 3), 4, "u4"), (96, 32, (1, 1), 4, "u8"),
    ):  # fmt: skip
        x = c.image(channels, 6, 5, dtype=dtype)
        pad = (kernel[0] // 2,) * 4
        w = c.weights(out, channels, *kernel, bits=bits)
        w[1] = -8
        y = c.op("conv2d", x, consts={"w": w, "b": c.bias(out)}, groups=1, pad=pad, pad_value=2)
        c.show(c.requant(y, reach=1 << 14, zp=3))
    x = c.input(128, dtype="u4")
    c.show(c.linear(x, 24, bits=4))


def tile_cases(c: Cases) -> None:
    """One convolution of every edge: rows, columns, chunks and a halo."""
    y = c.conv(c.image(48, 5, 8), 40, (3, 3), pad=(1, 1, 1, 1), pad_value=3)
    z = c.requant(y, reach=1 << 17, zp=7)
    c.show(c.requant(c.conv(z, 16, (3, 3), pad=(1, 1, 1, 1), pad_value=7), reach=1 << 17))


FAMILIES: dict[str, Callable[[Cases], None]] = {
    "image": image_cases, "close": close_cases, "group": group_cases,
    "end": end_cases, "linear": linear_cases, "nibble": nibble_cases, "tile": tile_cases,
}  # fmt: skip


@cache
def lowered(family: str, count: int = 1) -> tuple[Graph, Program, dict[str, Array], dict[str, Array]]:
    """A family's graph and program, samples, and what the interpreter makes of them."""
    cases = Cases()
    FAMILIES[family](cases)
    graph = cases.graph()
    inputs = {name: array[-count:] for name, array in samples(graph).items()}
    return graph, plan_program(graph, CUDA_SM_80), inputs, interp.run(graph, inputs)


def with_variant(program: Program, variant: Variant) -> Program:
    """The program with this variant wherever it is legal, and at least once."""
    kernels = []
    for kernel in program.kernels:
        context = Context(kernel, program, SCALAR)
        if kernel.anchor.op in ("conv2d", "linear"):
            assert matrix_of(context), kernel.name
            if variant.form in matrix_mma.forms(context, ["sm_80"]):
                kernel = replace(kernel, variant=variant.name)
        kernels.append(kernel)
    assert any(kernel.variant for kernel in kernels)
    return replace(program, kernels=tuple(kernels))


def wrong(family: str, variant: Variant, count: int = 1, **options: bool) -> tuple[list[str], Counter[int]]:
    """Outputs that differ from the interpreter's, and bank conflicts."""
    _, program, inputs, expected = lowered(family, count)
    conflicts: Counter[int] = Counter()

    def watch(name: str, emulator: Emulator) -> None:
        conflicts.update(emulator.conflicts)

    backend = CudaBackend(CUDA_SM_80)
    outputs = run_program(backend, with_variant(program, variant), inputs, watch, **options)
    return [name for name in expected if not np.array_equal(outputs[name], expected[name])], conflicts


SMALL = Variant(parse("mma-32x32").tile)  # type: ignore[union-attr]


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_interpreter(family: str) -> None:
    assert wrong(family, SMALL, counting=True) == ([], Counter())


@pytest.mark.parametrize("tile", TILES, ids=lambda tile: f"{tile.rows}x{tile.cols}")
def test_every_tile(tile: tiles.Tile) -> None:
    assert wrong("tile", Variant(tile), counting=True) == ([], Counter())


@pytest.mark.parametrize("name", ["mma-64x64-w4", "mma-16x64-w4", "mma-64x16-w4", "mma-32x64-s4", "mma-128x32-s4"])
def test_four_bits(name: str) -> None:
    variant = parse(name)
    assert variant is not None
    assert wrong("nibble", variant, counting=True) == ([], Counter())


@pytest.mark.parametrize(("family", "backwards"), [("image", False), ("end", True), ("nibble", True)])
def test_splits_equal_interpreter(family: str, backwards: bool) -> None:
    form = PACKED if family == "nibble" else BYTES
    variant = replace(SMALL, splits=SPLIT, form=form)
    assert wrong(family, variant, counting=True, backwards=backwards) == ([], Counter())


@pytest.mark.parametrize(("family", "name"), [("linear", "mma-16x64-k3"), ("tile", "mma-64x64")])
def test_samples_share_tiles(family: str, name: str) -> None:
    """Batches of rows that fit one tile: images of 49 pixels and single rows, with halos and residual additions."""
    variant = parse(name)
    assert variant is not None
    _, program, _, _ = lowered(family, 4)
    chosen = with_variant(program, variant)
    emitted = [CudaBackend(CUDA_SM_80).emit(kernel, chosen) for kernel in chosen.kernels if kernel.variant]
    assert sum(FOLDED_ATTRIBUTE in one.func.attrs for one in emitted) >= 2
    assert wrong(family, variant, 4, counting=True) == ([], Counter())


def one_kernel() -> Cases:
    """A convolution with a residual addition, in one tile of 7 chunks: the last lies where outputs go afterwards."""
    c = Cases()
    x, r = c.image(448, 5, 6), c.image(32, 5, 6)
    c.show(c.requant(c.conv(x, 32, (1, 1)), r, reach=1 << 17, zeros=(0, 11), zp=4))
    return c


ORDERING = re.compile(r"q_sync|q_commit|q_wait\d|q_fence")


@pytest.mark.parametrize("family", ["image", "close", "end"])
def test_without_asynchronous_copies(family: str) -> None:
    assert wrong(family, SMALL, counting=True, synchronous=True) == ([], Counter())


@pytest.mark.parametrize(("splits", "synchronous"), [(1, False), (SPLIT, False), (1, True)])
def test_nothing_that_orders_threads_can_be_left_out(
    splits: int, synchronous: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = one_kernel().graph()
    # With as many samples as splits, blocks share nothing.
    batches = [{name: array[-n:] for name, array in samples(graph).items()} for n in (1, splits)[: 1 + (splits > 1)]]
    expected = [interp.run(graph, inputs) for inputs in batches]
    program = with_variant(plan_program(graph, CUDA_SM_80), replace(SMALL, splits=splits))
    original = matrix_mma.call
    seen: list[str] = []
    left_out = -1

    def call(b: object, name: str, *arguments: object) -> None:
        if (re.compile("q_sync") if synchronous else ORDERING).fullmatch(name):
            seen.append(name)
            if len(seen) - 1 == left_out:
                return
        original(b, name, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(matrix_mma, "call", call)
    monkeypatch.setattr(matrix_store, "call", call)

    def right() -> bool:
        for inputs, wanted in zip(batches, expected, strict=True):
            seen.clear()
            outputs = run_program(CudaBackend(CUDA_SM_80), program, inputs, synchronous=synchronous)
            if any(not np.array_equal(outputs[name], wanted[name]) for name in wanted):
                return False
        return True

    assert right()
    names = list(seen)
    assert Counter(names)["q_fence"] == (2 if splits > 1 else 0)
    for left_out, name in enumerate(names):
        try:
            assert not right(), f"number {left_out}, {name}"
        except UndefinedError:
            continue


def test_bank_conflicts_are_counted() -> None:
    lane, all_ = np.arange(32), np.ones(32, dtype=bool)
    # Rows of 64 bytes in place: the eight rows of a matrix lie in two groups of banks.
    assert surplus_turns(lane * 64, all_, 16) == 4 * 3
    assert surplus_turns(lane * 80, all_, 16) == 0
    assert surplus_turns(lane * 4, all_, 4) == surplus_turns(lane * 0, all_, 4) == 0
    assert surplus_turns(lane * 8, all_, 4) == 1
    assert surplus_turns(lane * 128, lane < 3, 4) == 2


def test_forms_need_the_integers_and_the_hardware() -> None:
    _, program, _, _ = lowered("nibble")
    found = {
        kernel.name: matrix_mma.forms(Context(kernel, program, SCALAR), ["sm_86"])
        for kernel in program.kernels
        if kernel.anchor.op in ("conv2d", "linear")
    }
    assert set(found.values()) == {FORMS, (BYTES, PACKED)}
    kernel = next(k for k in program.kernels if found.get(k.name) == FORMS)
    assert matrix_mma.forms(Context(kernel, program, SCALAR), ["sm_86", "sm_90"]) == (BYTES, PACKED)
    _, program, _, _ = lowered("end")
    kernel = next(k for k in program.kernels if k.anchor.op == "conv2d")
    assert matrix_mma.forms(Context(kernel, program, SCALAR), ["sm_80"]) == (BYTES,)


def test_preferred_variants() -> None:
    def first(rows: int, cols: int, inner: int, architecture: str = "sm_80") -> Variant:
        return preferred(Shape(rows, cols, -(-inner // tiles.CHUNK)), (BYTES,), DEVICES[architecture])[0]

    large = first(4096, 4096, 4096)
    assert (large.tile.rows, large.tile.cols, large.splits) == (128, 128, 1)
    # One row: few tiles, so that blocks share them; and no tile higher than it must be.
    assert first(1, 1000, 2048).splits > 1 and first(1, 1000, 2048).tile.rows <= 32
    # 7×7 images: 49 rows fill few of an A100's processors, more of a T4's.
    assert first(49, 512, 4608).splits > 1
    assert first(3136, 64, 576).splits == 1
    assert first(49, 512, 4608, "sm_75").splits <= first(49, 512, 4608).splits
    # Where weights are what takes time, half of them take half.
    shape = Shape(1, 4096, 64)
    form = preferred(shape, (BYTES, PACKED), DEVICES["sm_89"])[0].form
    assert form is PACKED
    assert preferred(shape, FORMS, DEVICES["sm_80"]) == preferred(shape, FORMS[::-1], DEVICES["sm_80"])


def test_names() -> None:
    for name in ("mma-64x64", "mma-32x32-k4", "mma-128x64-w4", "mma-16x64-k12-s4"):
        variant = parse(name)
        assert variant is not None and variant.name == name
    for name in ("generic", "mma-48x48", "mma-64x64-x4", "mma-64x64-k", "mma-128x128-k2"):
        assert parse(name) is None


@needs_compiler
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiles(architecture: str, tmp_path: Path) -> None:
    """One small kernel for each architecture, every form in turn: it builds, and nothing in it is floating point."""
    variant = {
        "sm_75": replace(SMALL, form=NIBBLES), "sm_80": replace(SMALL, splits=2, form=NIBBLES),
        "sm_86": replace(SMALL, form=PACKED), "sm_89": replace(SMALL, splits=2), "sm_90": SMALL,
    }[architecture]  # fmt: skip
    c = Cases()
    x = c.input(64, dtype="u4")
    c.show(c.requant(c.linear(x, 32, bits=4), reach=1 << 14))
    program = with_variant(plan_program(c.graph(), CUDA_SM_80), variant)
    backend = CudaBackend(find_target(f"cuda:{architecture}"))
    backend.build(program, tmp_path)
    assert backend.float_operations(tmp_path, program) == []
