"""CUDA without a GPU: every kernel, emulated thread by thread, equals the interpreter."""

from __future__ import annotations

import numpy as np
import pytest
from op_cases import FAMILIES, Cases, samples

from passes.lower.plan_memory import plan_program
from qcompile.errors import DeviceError
from qcompile.ir import Array, Graph
from qcompile.pm.registry import gpu_features
from qcompile.semantics import interp
from qcompile.target.program import Program
from targets.cuda import driver
from targets.cuda.backend import CudaBackend
from targets.cuda.emulated_program import run_program
from targets.cuda.target import CUDA

without_gpu = pytest.mark.skipif(bool(gpu_features()), reason="this machine has a GPU")


def lowered(family: str) -> tuple[Graph, Program, dict[str, Array], dict[str, Array]]:
    """A family's graph and program, one sample, and what the interpreter makes of it."""
    cases = Cases()
    FAMILIES[family](cases)
    graph = cases.graph()
    inputs = {name: array[-1:] for name, array in samples(graph).items()}
    return graph, plan_program(graph, CUDA), inputs, interp.run(graph, inputs)


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_interpreter(family: str) -> None:
    _, program, inputs, expected = lowered(family)
    outputs = run_program(CudaBackend(CUDA), program, inputs)
    assert [name for name in expected if not np.array_equal(outputs[name], expected[name])] == []


@without_gpu
def test_says_that_there_is_no_gpu() -> None:
    with pytest.raises(DeviceError, match="NVIDIA"):
        driver.device()
