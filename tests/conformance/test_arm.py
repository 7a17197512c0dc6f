"""The Arm targets under QEMU: every operator at range edges, every implementation, equal to the interpreter."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from arm_cases import arm_cases
from op_cases import Cases, samples

from passes.lower.plan_memory import plan_program
from qcompile.pm.registry import find_backend, find_target
from qcompile.semantics import interp
from qcompile.target.model import host_architecture
from targets._tvm.cpu import GENERIC, CpuBackend
from targets._tvm.cross import find_emulator, linkers

TARGETS = {
    "aarch64-neon": ("winograd-4", "int16", "int16-shifted"),
    "aarch64-dotprod": ("sdot",),
    "aarch64-i8mm": ("usdot", "winograd-2"),
    "arm-neon": ("winograd-4", "int16", "int16-shifted"),
}
"""Target → implementations besides the preferred ones that get a run of their own."""


def emulated(name: str) -> CpuBackend:
    """The backend of a target that this machine can build for and run; skips the test where it cannot."""
    backend = cast(CpuBackend, find_backend(find_target(name)))
    if backend.architecture != host_architecture():
        if find_emulator(backend.options) is None:
            pytest.skip(f"no {backend.options['emulator'].split()[0]} here (Debian package qemu-user)")
        if not any(shutil.which(words[0]) for words in linkers(backend.options)):
            pytest.skip(f"no {linkers(backend.options)[0][0]} here; {backend.options['linker_hint']}")
    return backend


def build_and_run(backend: CpuBackend, program: Any, folder: Path, inputs: Any) -> list[np.ndarray[Any, Any]]:
    backend.build(program, folder)
    return backend.load(folder, program.graph).run([inputs[p.name] for p in program.graph.inputs])


@pytest.mark.parametrize("name", TARGETS)
def test_equals_interpreter(name: str, tmp_path: Path) -> None:
    backend = emulated(name)
    cases = Cases()
    arm_cases(cases)
    graph = cases.graph()
    inputs = samples(graph)
    expected = interp.run(graph, inputs)
    planned = plan_program(graph, backend.target)
    offered = {k.name: backend.variants(k, planned) for k in planned.kernels}
    seen = set()
    for preferred in ("", *TARGETS[name]):
        chosen = {n: preferred if preferred in names else names[0] for n, names in offered.items()}
        seen.update(chosen.values())
        program = replace(planned, kernels=tuple(replace(k, variant=chosen[k.name]) for k in planned.kernels))
        results = build_and_run(backend, program, tmp_path / (preferred or "first"), inputs)
        wrong = [o.name for o, y in zip(graph.outputs, results, strict=True) if not np.array_equal(y, expected[o.name])]
        assert (preferred, wrong) == (preferred, [])
        assert backend.float_operations(tmp_path / (preferred or "first")) == []
    assert seen == {*{v for names in offered.values() for v in names}, GENERIC}


@pytest.mark.parametrize("name", TARGETS)
def test_library_is_deterministic_and_integer_only(name: str, tmp_path: Path) -> None:
    backend = emulated(name)
    cases = Cases()
    y = cases.conv(cases.image(16, 5, 5, dtype="u6"), 8, (3, 3), bits=4, pad=(1, 1, 1, 1))
    cases.show(cases.requant(y, reach=1 << 12))
    program = plan_program(cases.graph(), backend.target)
    for folder in ("a", "b"):
        backend.build(program, tmp_path / folder)
    for file in ("library.so", "kernels.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert backend.float_operations(tmp_path / "a", program) == []
