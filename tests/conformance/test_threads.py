"""Kernels shared among any number of threads: equal to the interpreter, however the work is cut."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from op_cases import FAMILIES, Cases, samples
from test_operators import backend_of, choices

from passes.lower.plan_memory import plan_program
from qcompile.ir import Array
from qcompile.semantics import interp
from targets._tvm.cpu import CpuBackend
from targets._tvm.kernels import winograd
from targets._tvm.threads import HOOK, launcher


class Group(ctypes.Structure):
    """TVMParallelGroupEnv."""

    _fields_ = (("sync_handle", ctypes.c_void_p), ("num_task", ctypes.c_int32))


TASK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.POINTER(Group), ctypes.c_void_p)
LAUNCH = ctypes.CFUNCTYPE(ctypes.c_int, TASK, ctypes.c_void_p, ctypes.c_int)


def sharing(name: str) -> CpuBackend:
    """A backend that shares every loop, however small."""
    backend = backend_of(name, 16)
    for variant in backend._variants.values():
        variant.isa = replace(variant.isa, parallel_operations=1)
    return backend


def differing(backend: CpuBackend, cases: Cases, variant: str, folder: Path) -> dict[str, list[str]]:
    """Outputs that are wrong, by number of tasks; "team": on two threads at once."""
    graph = cases.graph()
    inputs = samples(graph)
    expected = interp.run(graph, inputs)
    planned = plan_program(graph, backend.target)
    choice = choices(backend, planned, variant)
    program = replace(planned, kernels=tuple(replace(k, variant=choice[k.name]) for k in planned.kernels))
    backend.build(program, folder)
    executable: Any = backend.load(folder, graph)
    hook = ctypes.c_void_p.in_dll(executable._library, HOOK)
    launches: list[int] = []

    def wrong() -> list[str]:
        # What a kernel does not write must not be right by chance.
        executable._arena[:] = 0xA5
        results: Sequence[Array] = executable.run([inputs[p.name] for p in graph.inputs])
        return [o.name for o, y in zip(graph.outputs, results, strict=True) if not np.array_equal(y, expected[o.name])]

    def launch_of(tasks: int) -> Callable[[Any, int, int], int]:
        def launch(task: Any, data: int, _: int) -> int:
            launches.append(tasks)
            # The last task first: none may rely on another.
            return max(task(i, ctypes.byref(Group(None, tasks)), data) for i in reversed(range(tasks)))

        return launch

    found = {}
    for tasks in (1, 2, 3, 5, 64):
        call = LAUNCH(launch_of(tasks))
        hook.value = ctypes.cast(call, ctypes.c_void_p).value
        found[str(tasks)] = wrong()
    hook.value = launcher()
    executable.use_threads(2)
    found["team"] = [name for _ in range(5) for name in wrong()]
    executable.use_threads(1)
    assert launches
    return {tasks: names for tasks, names in found.items() if names}


TARGETS = pytest.mark.parametrize("target", ["x86-vnni", "x86-avx2"])


@pytest.mark.parametrize(
    ("family", "target"), [("dense", "x86-vnni"), ("fused", "x86-vnni"), ("pool", "x86-vnni"), ("pool", "x86-avx2")]
)
def test_any_number_of_tasks(family: str, target: str, tmp_path: Path) -> None:
    cases = Cases()
    FAMILIES[family](cases)
    assert differing(sharing(target), cases, "preferred", tmp_path) == {}


@pytest.mark.parametrize("variant", ["maddubs", "maddubs-windows", "maddubs-split", "maddubs-halves", "madd"])
def test_direct_kernels_of_avx2(variant: str, tmp_path: Path) -> None:
    cases = Cases()
    bits = 5 if variant == "maddubs" else 8
    for channels, out, size, kernel in ((32, 48, (9, 10), 3), (16, 24, (17, 4), 1)):
        x, pad = cases.image(channels, *size, dtype="u8"), (kernel // 2,) * 4
        cases.show(cases.requant(cases.conv(x, out, (kernel, kernel), bits=bits, pad=pad), reach=1 << 17))
    assert differing(sharing("x86-avx2"), cases, variant, tmp_path) == {}


@TARGETS
@pytest.mark.parametrize(
    ("variant", "act", "bits", "constants"),
    [
        ("winograd-4", 8, 8, {}),
        ("winograd-2", 6, 4, {}),
        ("winograd-4", 8, 8, {"_SHARED_WEIGHTS": 0}),
        ("winograd-2", 6, 4, {"_SHARED_WEIGHTS": 0}),
        ("winograd-4", 8, 8, {"STRIP_BYTES": 1 << 16}),
        ("winograd-2", 6, 4, {"STRIP_BYTES": 1 << 15}),
    ],
)
def test_winograd_by_rows_by_blocks_and_in_strips(
    variant: str,
    act: int,
    bits: int,
    constants: dict[str, int],
    target: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in constants.items():
        monkeypatch.setattr(winograd, name, value)
    cases = Cases()
    for channels, out, size in ((32, 80, (13, 22)), (16, 40, (9, 5)), (48, 130, (4, 4))):
        x, r = cases.image(channels, *size, dtype=f"u{act}"), cases.image(out, *size)
        y = cases.conv(x, out, (3, 3), bits=bits, pad=(1, 1, 1, 1), pad_value=3)
        y = cases.requant(y, r, reach=1 << 17, zeros=(0, 7), zp=3)
        # Its halo is read.
        cases.show(cases.requant(cases.conv(y, 16, (3, 3), pad=(1, 1, 1, 1), pad_value=5), reach=1 << 19))
    assert differing(sharing(target), cases, variant, tmp_path) == {}
