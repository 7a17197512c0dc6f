"""CUDA without a GPU: every kernel, emulated thread by thread, equals the interpreter; the text compiles for every
architecture and holds no floating-point instruction."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from op_cases import FAMILIES, Cases, samples

from passes.lower.plan_memory import plan_program
from qcompile.errors import DeviceError, TargetError
from qcompile.ir import Array, Graph
from qcompile.pm.registry import find_target, gpu_features
from qcompile.semantics import interp
from qcompile.target.program import Program
from targets.cuda import build, conv_mma, driver
from targets.cuda.backend import CudaBackend
from targets.cuda.emulate import UndefinedError, run_program
from targets.cuda.target import ARCHITECTURES, CUDA

try:
    build.find_compiler()
    HAS_COMPILER = True
except TargetError:
    HAS_COMPILER = False
needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="no CUDA compiler on this machine")
without_gpu = pytest.mark.skipif(bool(gpu_features()), reason="this machine has a GPU")


def lowered(family: str) -> tuple[Graph, Program, dict[str, Array], dict[str, Array]]:
    """A family's graph and program, one sample, and what the interpreter makes of it."""
    cases = Cases()
    FAMILIES[family](cases)
    graph = cases.graph()
    inputs = {name: array[-1:] for name, array in samples(graph).items()}
    return graph, plan_program(graph, CUDA), inputs, interp.run(graph, inputs)


def with_tile(program: Program, tile: str) -> Program:
    """The program with this tile wherever tensor cores are used."""
    backend = CudaBackend(CUDA)
    chosen = [
        replace(kernel, variant=tile) if tile in backend.variants(kernel, program) else kernel
        for kernel in program.kernels
    ]
    return replace(program, kernels=tuple(chosen))


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_interpreter(family: str) -> None:
    _, program, inputs, expected = lowered(family)
    outputs = run_program(CudaBackend(CUDA), program, inputs)
    assert [name for name in expected if not np.array_equal(outputs[name], expected[name])] == []


@pytest.mark.parametrize("tile", [tile.name for tile in conv_mma.TILES[1:]])
def test_other_tiles_equal_interpreter(tile: str) -> None:
    _, program, inputs, expected = lowered("fused")
    chosen = with_tile(program, tile)
    assert any(kernel.variant == tile for kernel in chosen.kernels)
    outputs = run_program(CudaBackend(CUDA), chosen, inputs)
    assert [name for name in expected if not np.array_equal(outputs[name], expected[name])] == []


@pytest.mark.parametrize("left_out", ["q_sync", "q_commit", "q_wait_but_one"])
def test_missing_barriers_and_waits_are_found(left_out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, program, inputs, expected = lowered("fused")
    original = conv_mma.call
    monkeypatch.setattr(conv_mma, "call", lambda b, name, *a: None if name == left_out else original(b, name, *a))
    try:
        outputs = run_program(CudaBackend(CUDA), program, inputs)
    except UndefinedError:
        return
    assert any(not np.array_equal(outputs[name], expected[name]) for name in expected)


@needs_compiler
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_builds_without_floating_point(architecture: str, tmp_path: Path) -> None:
    _, program, _, _ = lowered("pool" if architecture != "sm_80" else "fused")
    backend = CudaBackend(find_target(f"cuda:{architecture}"))
    backend.build(program, tmp_path)
    assert backend.float_operations(tmp_path, program) == []
    listing = build.ptx((tmp_path / "kernels.cu").read_text(), architecture)
    assert f".target {architecture}" in listing


@needs_compiler
def test_floating_point_would_be_found() -> None:
    text = 'extern "C" __global__ void k(float *x) { x[threadIdx.x] *= 2.5f; }\n'
    assert build.float_operations(build.ptx(text, "sm_80"))


@needs_compiler
def test_equal_programs_give_equal_bytes(tmp_path: Path) -> None:
    _, program, _, _ = lowered("movement")
    backend = CudaBackend(find_target("cuda:sm_80"))
    assert backend.build(program, tmp_path / "a") == backend.build(program, tmp_path / "b")
    for file in ("kernels.cu", "kernels.fatbin", "kernels.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@without_gpu
def test_says_that_there_is_no_gpu() -> None:
    with pytest.raises(DeviceError, match="NVIDIA"):
        driver.Device()
