"""Winograd, depthwise, pooling and elementwise kernels for GPUs: every variant equals the interpreter, thread by
thread, is offered exactly where it is exact and aligned, touches memory in words, and compiles."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from op_cases import Cases, samples
from test_cuda_build import needs_compiler

from passes.lower.plan_memory import plan_program
from qcompile.ir import Array
from qcompile.semantics import interp
from qcompile.target.program import Kernel, Program
from targets._tvm.context import Context, Value
from targets._tvm.cpu import GENERIC
from targets._tvm.isa import SCALAR
from targets.cuda import build, depthwise, image_sum, vector, winograd_mma
from targets.cuda.backend import CudaBackend
from targets.cuda.emulated import UndefinedError
from targets.cuda.emulated_program import run_program
from targets.cuda.runtime import PRELUDE
from targets.cuda.target import CUDA

WINOGRAD = [tile.name for tile in winograd_mma.TILES]
DEPTHWISE = [tile.name for tile in depthwise.TILES]
VECTORS = [one.name for one in vector.VECTORS]


def winograd_cases(c: Cases) -> None:
    """Odd sizes, several chunks and blocks, residuals, outputs with a halo of their own, and largest inputs."""
    for channels, out, size, pad, bits in (
        (16, 16, (8, 8), (1, 1, 1, 1), 4),
        (80, 40, (9, 7), (1, 1, 1, 1), 3),
        (48, 17, (4, 3), (2, 1, 0, 1), 2),
    ):
        x = c.image(channels, *size, dtype="u6")
        y = c.conv(x, out, (3, 3), bits=bits, pad=pad, pad_value=5)
        reach = channels * 9 * 20.0 * 2 ** (bits - 1)
        r = c.image(*c.b.type_of(y).sample, dtype="u7")
        z = c.requant(y, r, reach=reach, zeros=(0, 60), dtype="u6")
        c.show(c.requant(c.conv(z, 5, (3, 3), bits=2, pad=(1, 1, 1, 1), pad_value=9), reach=reach, zp=3))


def depthwise_cases(c: Cases) -> None:
    """Windows in columns and not, strides, dilations, one pixel, odd sizes, outputs with a halo."""
    for channels, kernel, size, attrs in (
        (32, (3, 3), (9, 7), {"pad": (1, 1, 1, 1)}),
        (16, (3, 3), (8, 6), {"pad": (0, 0, 1, 1), "stride": (2, 2)}),
        (48, (5, 5), (7, 7), {"pad": (2, 2, 2, 2), "stride": (2, 1)}),
        (16, (3, 3), (7, 8), {"pad": (2, 2, 2, 2), "dilation": (2, 2)}),
        (16, (3, 3), (1, 1), {"pad": (1, 1, 1, 1)}),
        (16, (4, 4), (6, 9), {}),
    ):
        x = c.image(channels, *size)
        y = c.conv(x, channels, kernel, groups=channels, pad_value=128, **attrs)
        z = c.requant(y, reach=1 << 14, zp=128)
        c.show(c.requant(c.conv(z, 3, (3, 3), pad=(1, 1, 1, 1), pad_value=128), reach=1 << 19, zp=7))


def elementwise_cases(c: Cases) -> None:
    """What vectors compute: windows with and without a halo, residuals, broadcasts, tables, copies, wide results."""
    x, y = c.image(32, 6, 5), c.image(32, 6, 5)
    scale = c.image(32, 1, 1)
    c.show(c.op("max_pool", x, kernel=(3, 3), stride=(2, 2), pad=(1, 1, 1, 1)))
    c.show(c.requant(c.op("sum_pool", x, kernel=(3, 2), stride=(1, 1), pad=(1, 0, 1, 1), pad_value=6), reach=1 << 11))
    c.show(c.op("sum_pool", x, kernel=(6, 5), stride=(1, 1), pad=(0, 0, 0, 0), pad_value=0))
    c.show(c.requant(x, y, reach=300, zeros=(77, 3), zp=13, dtype="u5"))
    c.show(c.requant(x, y, reach=300, per="position"))
    c.show(c.requant(x, reach=255, zeros=(100,), negative=True, zp=20))
    c.show(c.requant(x, small_shift=True, zp=20))
    c.show(c.requant(c.op("mul", x, scale, zeros=(5, 9)), reach=1 << 15, zp=3))
    c.show(c.op("mul", x, y, zeros=(0, 255)))
    c.show(c.op("table", x, consts={"t": c.rng.integers(0, 256, 256).astype(np.uint8)}, dtype="u8"))
    c.show(c.op("concat", x, y, axis=1))
    c.show(c.op("max_pool", c.image(1, 5, 6), kernel=(3, 3), stride=(1, 1), pad=(1, 1, 1, 1)))
    c.show(c.op("resize", x, rows=(0, 0, 1, 5), cols=(4, 3, 1)))
    tokens = c.op("slice", c.input(9, 48), starts=(0, 0), ends=(8, 48), steps=(1, 1))
    c.show(c.requant(tokens, reach=200))
    c.show(c.requant(c.conv(c.image(3, 5, 32), 8, (3, 3), pad=(1, 1, 1, 1)), reach=1 << 17))


def sum_cases(c: Cases) -> None:
    """Whole images: more channels than a block, pixels that fill no turn, both operators, results with a halo."""
    x = c.image(80, 7, 7)
    c.show(c.op("reduce_sum", x, axes=(2, 3), keepdims=0))
    c.show(c.requant(c.op("reduce_sum", x, axes=(2, 3), keepdims=1), reach=1 << 14, per="tensor"))
    z = c.requant(c.op("sum_pool", x, kernel=(7, 7), stride=(1, 1), pad=(0, 0, 0, 0), pad_value=0), reach=1 << 14, zp=9)
    c.show(c.requant(c.conv(z, 3, (3, 3), pad=(1, 1, 1, 1), pad_value=9), reach=1 << 19))


@cache
def lowered(make: Callable[[Cases], None]) -> tuple[Program, dict[str, Array], dict[str, Array]]:
    """A program, its last sample, and what the interpreter makes of it."""
    cases = Cases()
    make(cases)
    graph = cases.graph()
    inputs = {name: array[-1:] for name, array in samples(graph).items()}
    return plan_program(graph, CUDA), inputs, interp.run(graph, inputs)


def with_variant(program: Program, variant: str) -> Program:
    """The program with this variant wherever it is offered."""
    backend = CudaBackend(CUDA)
    offered = [variant in backend.variants(kernel, program) for kernel in program.kernels]
    assert any(offered)
    chosen = [replace(k, variant=variant) if yes else k for k, yes in zip(program.kernels, offered, strict=True)]
    return replace(program, kernels=tuple(chosen))


@pytest.mark.parametrize(
    ("make", "variant"),
    [
        *((winograd_cases, name) for name in WINOGRAD),
        *((depthwise_cases, name) for name in DEPTHWISE),
        *((elementwise_cases, name) for name in (*VECTORS, GENERIC)),
        (sum_cases, image_sum.NAME),
        (sum_cases, GENERIC),
    ],
)
def test_equals_interpreter(make: Callable[[Cases], None], variant: str) -> None:
    program, inputs, expected = lowered(make)
    outputs = run_program(CudaBackend(CUDA), with_variant(program, variant), inputs)
    assert [name for name in expected if not np.array_equal(outputs[name], expected[name])] == []


@pytest.mark.parametrize("left_out", ["q_sync", "q_commit", "q_wait1"])
@pytest.mark.parametrize(("module", "make"), [(winograd_mma, winograd_cases), (image_sum, sum_cases)])
def test_missing_barriers_and_waits_are_found(
    module: object, make: Callable[[Cases], None], left_out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if module is image_sum and left_out != "q_sync":
        pytest.skip("it copies nothing asynchronously")
    program, inputs, expected = lowered(make)
    chosen = with_variant(program, WINOGRAD[0] if module is winograd_mma else image_sum.NAME)
    original = module.call  # type: ignore[attr-defined]
    monkeypatch.setattr(module, "call", lambda b, name, *a: None if name == left_out else original(b, name, *a))
    try:
        outputs = run_program(CudaBackend(CUDA), chosen, inputs)
    except UndefinedError:
        return
    assert any(not np.array_equal(outputs[name], expected[name]) for name in expected)


def winograd_offered(weight_sum: int, dtype: str) -> bool:
    """Whether Winograd is offered for nine weights of one sign and this sum, on inputs of this type."""

    def make(c: Cases) -> None:
        w = np.zeros((16, 16, 3, 3), dtype=np.int8)
        w[3, 5] = weight_sum // 9
        w[3, 5, 0, : weight_sum % 9 % 3] += 1
        w[3, 5, 1 : 1 + weight_sum % 9 // 3] += 1
        assert int(w[3, 5].astype(int).sum()) == weight_sum
        x = c.image(16, 6, 6, dtype=dtype)
        y = c.op("conv2d", x, consts={"w": w, "b": c.bias(16)}, pad=(1, 1, 1, 1), pad_value=5)
        c.show(c.requant(y, reach=1 << 14))

    program, _, _ = lowered(make)
    (kernel,) = (k for k in program.kernels if k.anchor.op == "conv2d")
    return winograd_mma.is_legal(Context(kernel, program, SCALAR))


def test_winograd_is_refused_one_step_beyond_the_bound() -> None:
    assert winograd_offered(127, "u6")
    assert not winograd_offered(128, "u6")
    assert not winograd_offered(127, "u7")


def single_results(c: Cases) -> None:
    """Loops that make one element are no loops over elements."""
    c.show(c.requant(c.op("sum_pool", c.image(1, 6, 7), kernel=(6, 7), stride=(1, 1), pad=(0, 0, 0, 0), pad_value=0),
                     reach=1 << 13))  # fmt: skip
    c.show(c.op("reduce_sum", c.input(300), axes=(1,), keepdims=1))
    c.show(c.op("max_pool", c.image(4, 6, 6), kernel=(6, 6), stride=(1, 1), pad=(0, 0, 0, 0)))


def test_single_results_are_not_shared_among_threads() -> None:
    program, inputs, expected = lowered(single_results)
    outputs = run_program(CudaBackend(CUDA), program, inputs)
    assert [name for name in expected if not np.array_equal(outputs[name], expected[name])] == []


def caller_cases(c: Cases) -> None:
    """Tables read the caller's arrays, whose samples lie 20, 32 and 33 bytes apart."""
    for size in (20, 32, 33):
        t = c.rng.integers(0, 256, 256).astype(np.uint8)
        c.show(c.op("table", c.input(size), consts={"t": t}, dtype="u8"))


def tables(program: Program) -> list[Kernel]:
    return [kernel for kernel in program.kernels if kernel.anchor.op == "table"]


def test_vectors_are_no_wider_than_the_alignment_of_every_sample() -> None:
    program, _, _ = lowered(caller_cases)
    backend = CudaBackend(CUDA)
    found = [set(backend.variants(kernel, program)) for kernel in tables(program)]
    assert found == [{"vector-4", "vector-16", GENERIC}, {"vector-4", "vector-16", GENERIC}, {GENERIC}]
    # 16 elements of a sample that is aligned to 4 bytes only are four words.
    assert "q_load16" not in text_of(program, "vector-16", tables(program)[0])
    assert "q_load16" in text_of(program, "vector-16", tables(program)[1])


def test_an_alignment_that_does_not_hold_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(c: Cases) -> None:
        c.show(c.op("slice", c.op("table", c.input(40), consts={"t": np.arange(256).astype(np.uint8)}, dtype="u8"),
                    starts=(3,), ends=(35,), steps=(1,)))  # fmt: skip

    program, inputs, _ = lowered(make)
    (kernel,) = (k for k in program.kernels if k.anchor.op == "slice")
    assert vector.legal_vectors(kernel, program) == []
    always = SimpleNamespace(bind=lambda *a: None, modular_set=lambda e: SimpleNamespace(coeff=16, base=0))
    monkeypatch.setattr("targets.cuda.vectors.Analyzer", lambda: always)
    monkeypatch.setattr(vector, "_known", {})
    with pytest.raises(UndefinedError, match="not aligned"):
        run_program(CudaBackend(CUDA), with_variant(program, "vector-16"), inputs)


def text_of(program: Program, variant: str, kernel: Kernel) -> str:
    """The definition of one kernel with a variant."""
    chosen = replace(program, kernels=(replace(kernel, variant=variant),))
    (text,) = CudaBackend(CUDA).generate(chosen).kernels.values()
    return text


@pytest.mark.parametrize("variant", VECTORS)
def test_bytes_are_touched_in_words(variant: str) -> None:
    program, _, _ = lowered(elementwise_cases)
    backend = CudaBackend(CUDA)
    kernels = [k for k in program.kernels if k.anchor.op != "reshape" and variant in backend.variants(k, program)]
    assert len(kernels) >= 12
    for kernel in kernels:
        if program.buffers[kernel.inputs[0]].layout.shape[0] == 1:
            # A single channel is read by itself and stored as all of its pixel.
            continue
        chosen = replace(kernel, variant=variant)
        bytes_ = [
            f"a{i}_data" for i, argument in enumerate(backend.emit(chosen, program).arguments)
            if isinstance(argument, Value) and program.buffers[argument.name].layout.dtype != "i32"
        ]  # fmt: skip
        alone = set(re.findall(r"(?<!&)\b(a\d+_data)\[", text_of(program, variant, kernel)))
        assert not alone & set(bytes_), kernel.name


def test_copies_do_not_take_words_apart() -> None:
    program, _, _ = lowered(elementwise_cases)
    (kernel,) = (k for k in program.kernels if k.anchor.op == "concat")
    assert "q_permute" not in text_of(program, "vector-16", kernel)


@needs_compiler
@pytest.mark.parametrize("architecture", ["sm_75", "sm_90"])
def test_compiles_without_floating_point(architecture: str) -> None:
    kernels: dict[str, str] = {}
    for make, variant in (
        (winograd_cases, WINOGRAD[1]),
        (depthwise_cases, DEPTHWISE[1]),
        (elementwise_cases, VECTORS[1]),
        (sum_cases, image_sum.NAME),
    ):
        program, _, _ = lowered(make)
        chosen = with_variant(program, variant)
        some = [kernel for kernel in chosen.kernels if kernel.variant][:2]
        kernels |= CudaBackend(CUDA).generate(replace(chosen, kernels=tuple(some))).kernels
    listing = build.compile_text("\n".join([PRELUDE, *kernels.values()]), architecture).ptx.decode()
    assert "dp4a.u32.s32" in listing and "mma.sync" in listing
    assert build.float_operations(listing) == []
