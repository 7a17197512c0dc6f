"""Every operator × shapes × bit widths × edge values, on every code-generating target: equal to the
interpreter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from op_cases import FAMILIES, Cases, samples

import targets
from passes.lower.plan_memory import plan_program
from qcompile.semantics import interp
from qcompile.target.program import Program
from targets._tvm.build import forget_compiled
from targets._tvm.cpu import GENERIC, CpuBackend
from targets._tvm.float_scan import assembly_float_operations
from targets.x86_64.backend import X86Avx2, X86Vnni
from targets.x86_64.target import X86_AVX2, X86_VNNI

BACKENDS = {"x86-vnni": (X86Vnni, X86_VNNI), "x86-avx2": (X86Avx2, X86_AVX2)}


def host_features() -> set[str]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return set(line.partition(":")[2].split())
    return set()


def backend_of(name: str, channel_block: int) -> CpuBackend:
    make, target = BACKENDS[name]
    if missing := set(target.features) - host_features():
        pytest.skip(f"this CPU lacks {', '.join(sorted(missing))}")
    return make(replace(target, channel_block=channel_block))


def choices(backend: CpuBackend, program: Program, variant: str) -> dict[str, str]:
    """Kernel → implementation: the named one where it is legal, else the preferred one."""
    if variant == GENERIC:
        return {k.name: GENERIC for k in program.kernels}
    offered = {k.name: backend.variants(k, program) for k in program.kernels}
    return {name: variant if variant in names else names[0] for name, names in offered.items()}


VARIANTS = {
    ("x86-vnni", 16): ("preferred", "winograd-4", "winograd-4-inline", "winograd-2-rows", GENERIC),
    ("x86-vnni", 1): ("preferred", "winograd-2", "winograd-2-rows"),
    ("x86-avx2", 16): ("preferred", "madd", "winograd-2", "winograd-4", "winograd-4-inline"),
    ("x86-avx2", 1): ("preferred",),
}
"""(Target, channel block: 16 pads pixels, 1 keeps exactly C channels) → implementations."""


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("name", "channel_block"), VARIANTS)
def test_equals_interpreter(
    name: str, family: str, channel_block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("targets.x86_64.backend._WEIGHING", 1)
    backend = backend_of(name, channel_block)
    cases = Cases()
    FAMILIES[family](cases)
    graph = cases.graph()
    inputs = samples(graph)
    expected = interp.run(graph, inputs)
    planned = plan_program(graph, backend.target)
    done = []
    for variant in VARIANTS[name, channel_block]:
        choice = choices(backend, planned, variant)
        if choice in done:
            continue
        done.append(choice)
        program = replace(planned, kernels=tuple(replace(k, variant=choice[k.name]) for k in planned.kernels))
        backend.build(program, tmp_path / variant)
        results = backend.load(tmp_path / variant, graph).run([inputs[p.name] for p in graph.inputs])
        wrong = [o.name for o, y in zip(graph.outputs, results, strict=True) if not np.array_equal(y, expected[o.name])]
        assert (variant, wrong) == (variant, [])


@pytest.mark.parametrize("name", BACKENDS)
def test_library_is_deterministic_and_integer_only(name: str, tmp_path: Path) -> None:
    backend = backend_of(name, 16)
    cases = Cases()
    FAMILIES["winograd"](cases)
    program = plan_program(cases.graph(), backend.target)
    built = [backend.build(program, tmp_path / "a")]
    forget_compiled()
    built.append(backend.build(program, tmp_path / "b"))
    assert built[0] == built[1]
    for file in ("library.so", "kernels.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert backend.float_operations(tmp_path / "a", program) == []


def test_float_scan_tells_arithmetic_from_moves() -> None:
    lines = (
        "vmovups %zmm0, (%rdi)",
        "vpaddd %zmm0, %zmm1, %zmm2",
        "vaddps %zmm0, %zmm1, %zmm2",
        "vcvtdq2ps %zmm0, %zmm1",
    )
    listing = "".join(f"\t{line}\n" for line in lines)
    found = assembly_float_operations("f", listing, "x86_64")
    assert found == ["f: vaddps", "f: vcvtdq2ps"]


def test_catalogue_is_covered() -> None:
    assert set(BACKENDS) <= set(targets.CATALOGUE)
