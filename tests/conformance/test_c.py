"""Portable C: every operator equals the interpreter, compiled with all warnings as errors and, where the compiler
has it, with the sanitizer of undefined behaviour."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from op_cases import FAMILIES, Cases, samples

from passes.lower.plan_memory import plan_program
from qcompile.semantics import interp
from targets.c.backend import CBackend
from targets.c.target import C

needs_compiler = pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc on this machine")
STRICT = "gcc -O0 -Wall -Wextra -Wpedantic -Werror -fsanitize=undefined -fno-sanitize-recover=undefined"


@needs_compiler
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_interpreter(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", STRICT)
    cases = Cases()
    FAMILIES[family](cases)
    graph = cases.graph()
    inputs = samples(graph)
    expected = interp.run(graph, inputs)
    backend = CBackend(C)
    backend.build(plan_program(graph, C), tmp_path)
    results = backend.load(tmp_path, graph).run([inputs[p.name] for p in graph.inputs])
    wrong = [o.name for o, y in zip(graph.outputs, results, strict=True) if not np.array_equal(y, expected[o.name])]
    assert wrong == []


@needs_compiler
def test_library_is_deterministic_and_integer_only(tmp_path: Path) -> None:
    backend = CBackend(C)
    cases = Cases()
    FAMILIES["winograd"](cases)
    program = plan_program(cases.graph(), C)
    assert backend.build(program, tmp_path / "a") == backend.build(program, tmp_path / "b")
    for file in ("library.so", "kernels.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert backend.float_operations(tmp_path / "a", program) == []
