"""Compilers of CUDA text: which one is found, that both give the same kinds of output for every architecture, that
floating point would be found, and that equal programs give equal bytes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from op_cases import Cases

from passes.lower.plan_memory import plan_program
from qcompile.errors import TargetError
from qcompile.pm.registry import find_target
from qcompile.target.program import Program
from targets.cuda import build, nvrtc
from targets.cuda.backend import CudaBackend
from targets.cuda.executable import BINARY, DESCRIPTION, SOURCE
from targets.cuda.target import ARCHITECTURES, CUDA_SM_80

COMPILERS = [
    pytest.param(build.NVRTC, marks=pytest.mark.skipif(nvrtc.library() is None, reason="no NVRTC on this machine")),
    pytest.param(build.NVCC, marks=pytest.mark.skipif(build.find_nvcc() is None, reason="no nvcc on this machine")),
]


def has_compiler() -> bool:
    return nvrtc.library() is not None or build.find_nvcc() is not None


needs_compiler = pytest.mark.skipif(not has_compiler(), reason="no CUDA compiler on this machine")


def small_program() -> Program:
    """A convolution on tensor cores, two that share a kernel, and a linear layer."""
    cases = Cases()
    x = cases.image(16, 8, 8)
    for _ in range(2):
        x = cases.requant(cases.conv(x, 16, (1, 1)), reach=1 << 16)
    cases.show(x)
    cases.show(cases.requant(cases.linear(cases.input(64), 10), reach=1 << 18))
    return plan_program(cases.graph(), CUDA_SM_80)


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_both_compilers(compiler: str, architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel with tensor cores and asynchronous copies, as the generator prints it."""
    monkeypatch.setenv(build.CHOSEN, compiler)
    text = """
extern "C" __global__ void k(int32_t *x) {
  __shared__ int4 room[32];
  int32_t acc[4] = {0, 0, 0, 0};
  q_copy16(&room[threadIdx.x], &x[4 * threadIdx.x]);
  q_commit();
  q_wait0();
  q_sync();
  q_mma(acc, room[0].x, room[1].y, room[2].z, room[3].w, x[0], x[1]);
  q_store16(&x[4 * threadIdx.x], acc);
}
"""
    from targets.cuda.runtime import PRELUDE

    image = build.compile_text(PRELUDE + text, architecture)
    listing = image.ptx.decode()
    assert image.code.startswith(b"\x7fELF") and f".target {architecture}" in listing
    assert "mma.sync" in listing and build.float_operations(listing) == []
    assert ("cp.async" in listing) == (architecture != "sm_75")


@pytest.mark.parametrize("compiler", COMPILERS)
def test_program_of_both_compilers(compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every launch finds its kernel; equal programs give equal bytes, from the cache or without it."""
    monkeypatch.setenv(build.CHOSEN, compiler)
    program, backend = small_program(), CudaBackend(CUDA_SM_80)
    facts = backend.build(program, tmp_path / "a")
    assert facts["compiler"].startswith(compiler)
    monkeypatch.setenv("QCOMPILE_CACHE_DIR", str(tmp_path / "other cache"))
    assert backend.build(program, tmp_path / "b") == facts
    assert backend.build(program, tmp_path / "c") == facts
    for file in (SOURCE, BINARY, DESCRIPTION):
        assert len({(tmp_path / folder / file).read_bytes() for folder in "abc"}) == 1
    described = json.loads((tmp_path / "a" / DESCRIPTION).read_text())
    assert {launch[0] for launch in described["launches"]} == {n for i in described["images"] for n in i["kernels"]}
    assert len(described["images"]) == (1 if compiler == build.NVCC else int(facts["functions"]))
    assert backend.float_operations(tmp_path / "a", program) == []


@pytest.mark.parametrize("compiler", COMPILERS)
def test_errors_are_the_compilers_words(compiler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(build.CHOSEN, compiler)
    with pytest.raises(TargetError, match="nonsense"):
        build.compile_text('extern "C" __global__ void k() { nonsense(); }\n', "sm_80")


@needs_compiler
def test_floating_point_would_be_found() -> None:
    text = 'extern "C" __global__ void k(float *x) { x[threadIdx.x] *= 2.5f; }\n'
    assert build.float_operations(build.compile_text(text, "sm_80").ptx.decode())


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("add.s32 %r1, %r2, %r3;", False), ("\tadd.f32 \t%f1, %f2, %f3;", True), ("@%p1 mul.f64 %d1, %d2, %d3;", True),
        (".reg .f32 %f<3>;", False), ("// add.f32", False), ("cvt.rn.f16.s32 %h1, %r1;", True),
        ("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%r1}, {%r2};", False), ("{ fma.rn.bf16x2 %r1, %r2; }", True),
    ],
)  # fmt: skip
def test_lines_of_listings(line: str, found: bool) -> None:
    assert bool(build.float_operations(line)) == found


def test_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "library", lambda: None)
    monkeypatch.setattr(build, "find_nvcc", lambda: None)
    for chosen, words in (("", "NVRTC and for nvcc"), ("nvrtc", "library NVRTC"), ("nvcc", "nvcc on the path")):
        monkeypatch.setenv(build.CHOSEN, chosen)
        with pytest.raises(TargetError, match=words) as error:
            build.find_compiler()
        assert "pip install qcompile[cuda]" in str(error.value.hint)
    assert build.compiler_version() == "none"
    monkeypatch.setenv(build.CHOSEN, "gcc")
    with pytest.raises(TargetError, match="no compiler"):
        build.find_compiler()


def test_compiler_may_lie_in_a_toolkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin" / "nvcc"
    tool.write_text("#!/bin/sh\necho 'release 99.1, V99'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.setattr(build, "package_folders", list)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv(build.CHOSEN, build.NVCC)
    if build.shutil.which("nvcc") is None:
        assert build.find_compiler() == str(tool) and build.compiler_version() == "nvcc 99.1"


@needs_compiler
def test_every_target_names_its_tool() -> None:
    for architecture in ARCHITECTURES:
        target = find_target(f"cuda:{architecture}")
        assert target.toolchain == "targets.cuda.build:toolchain" and build.toolchain(target.options)
