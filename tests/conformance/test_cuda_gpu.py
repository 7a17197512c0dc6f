"""On an NVIDIA GPU: every implementation of every operator equals the interpreter, edge values included, and NVIDIA's
checker finds nothing to object to."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from op_cases import FAMILIES, Cases, samples

from passes.lower.plan_memory import plan_program
from qcompile.pm.registry import gpu_features
from qcompile.semantics import interp
from qcompile.target.program import Program
from targets.cuda.backend import CudaBackend
from targets.cuda.target import CUDA

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not gpu_features(), reason="no NVIDIA GPU on this machine")]

CHECKER = "compute-sanitizer"
MOST_VARIANTS = 24
"""More implementations than any kernel has."""


def with_variant(program: Program, backend: CudaBackend, place: int) -> Program | None:
    """The program with each kernel's implementation number `place`, or its last; None where none has so many."""
    offered = [backend.variants(kernel, program) for kernel in program.kernels]
    if place >= max(map(len, offered)):
        return None
    chosen = (replace(k, variant=v[min(place, len(v) - 1)]) for k, v in zip(program.kernels, offered, strict=True))
    return replace(program, kernels=tuple(chosen))


@pytest.mark.parametrize("place", range(MOST_VARIANTS))
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_interpreter(family: str, place: int, tmp_path: Path) -> None:
    cases = Cases()
    FAMILIES[family](cases)
    graph, backend = cases.graph(), CudaBackend(CUDA)
    program = with_variant(plan_program(graph, CUDA), backend, place)
    if program is None:
        return
    inputs = samples(graph)
    expected = interp.run(graph, inputs)
    backend.build(program, tmp_path)
    loaded = backend.load(tmp_path, graph)
    for count in (1, len(next(iter(inputs.values())))):
        part = {name: array[:count] for name, array in inputs.items()}
        for _ in range(3):
            found = loaded.run(list(part.values()))
            wrong = [
                port.name
                for port, y in zip(graph.outputs, found, strict=True)
                if not np.array_equal(y, expected[port.name][:count])
            ]
            assert wrong == []


@pytest.mark.skipif(shutil.which(CHECKER) is None, reason=f"no {CHECKER} on this machine")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck", "initcheck"])
def test_checker_finds_nothing(tool: str) -> None:
    test = f"{Path(__file__)}::test_equals_interpreter"
    command = [
        CHECKER,
        "--tool",
        tool,
        "--error-exitcode",
        "9",
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "gpu",
        test,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.returncode == 0, done.stdout[-4000:]
