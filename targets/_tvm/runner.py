"""Running a library from Python, and timing it."""

from __future__ import annotations

import ctypes
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tvm

from qcompile.ir import Array, Graph, storage
from qcompile.target.backend import Measurement, enough_runs
from targets._tvm.packing import Recipe

ENTRY = "qcompile_run"
LIBRARY = "library.so"
DESCRIPTION = "kernels.json"
ALIGNMENT = 64
SLACK = 128
"""Bytes behind arena and parameters: kernels may read, never write, a few elements behind a buffer."""
_TVM_POOL_MODE_ANY = 1


def set_threads(threads: int) -> None:
    """How many threads of TVM's pool parallel loops use.

    The pool is created on first use, with at most TVM_NUM_THREADS threads and by default half of the CPUs.
    """
    os.environ.setdefault("TVM_NUM_THREADS", str(max(threads, os.cpu_count() or 1)))
    tvm.get_global_func("runtime.config_threadpool")(_TVM_POOL_MODE_ANY, threads)


def open_library(path: Path) -> ctypes.CDLL:
    """Load a library and connect its parallel loops to TVM's thread pool."""
    library = ctypes.CDLL(str(path.resolve()))
    try:
        hook = ctypes.c_void_p.in_dll(library, "__TVMBackendParallelLaunch")
    except ValueError:
        return library
    launch = ctypes.cast(ctypes.CDLL(_runtime_path()).TVMBackendParallelLaunch, ctypes.c_void_p)
    hook.value = launch.value
    return library


def _runtime_path() -> str:
    folder = Path(tvm.__file__).parent
    return str(next(p for p in sorted(folder.rglob("libtvm_runtime*")) if p.suffix in (".so", ".dylib")))


def aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def aligned_array(size: int) -> Array:
    """`size` zero bytes at an aligned address."""
    raw = np.zeros(size + ALIGNMENT, dtype=np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size]


def pointer(array: Array) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


class LibraryExecutable:
    """A built program in this process.

    Args:
        directory: where `write_library` put it.
        graph: the integer graph it was built from, whose constants it reads.
    """

    def __init__(self, directory: Path, graph: Graph) -> None:
        described = json.loads((directory / DESCRIPTION).read_text())
        self._library = open_library(directory / LIBRARY)
        self._entry: Any = getattr(self._library, described["entry"])
        self._params = aligned_array(described["params_bytes"])
        for offset, *recipe in described["constants"]:
            packed = Recipe.from_json(recipe).pack(graph.consts)
            self._params[offset : offset + packed.nbytes] = packed.reshape(-1).view(np.uint8)
        self._arena = aligned_array(described["arena_bytes"])
        self._inputs = [(p.type.sample, storage(p.type.dtype)) for p in graph.inputs]
        shown = [graph.type_of(out.value) for out in graph.outputs]
        self._outputs = [(t.sample, storage(t.dtype)) for t in shown]

    def _call(self, sample: Sequence[Array], outputs: Sequence[Array]) -> None:
        self._entry(*[pointer(a) for a in (self._params, self._arena, *sample, *outputs)])

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        batch = len(inputs[0])
        ready = [
            np.ascontiguousarray(x, dtype=dtype).reshape(batch, *shape)
            for x, (shape, dtype) in zip(inputs, self._inputs, strict=True)
        ]
        results = [np.zeros((batch, *shape), dtype=dtype) for shape, dtype in self._outputs]
        for i in range(batch):
            self._call([x[i : i + 1] for x in ready], [y[i : i + 1] for y in results])
        return list(results)

    def measure(self, threads: int, runs: int) -> Measurement:
        set_threads(threads)
        rng = np.random.default_rng(0)
        sample = [rng.integers(0, 2, shape).astype(dtype) for shape, dtype in self._inputs]
        results = [np.zeros(shape, dtype=dtype) for shape, dtype in self._outputs]
        arguments = [pointer(a) for a in (self._params, self._arena, *sample, *results)]
        call, clock = self._entry, time.perf_counter_ns
        start = clock()
        for _ in range(3):
            call(*arguments)
        runs = runs or enough_runs((clock() - start) * 1e-9 / 3)
        for _ in range(runs // 10):
            call(*arguments)
        times = np.empty(runs)
        for i in range(runs):
            start = clock()
            call(*arguments)
            times[i] = clock() - start
        seconds = times * 1e-9
        return Measurement(float(np.median(seconds)), float(np.quantile(seconds, 0.9)), runs, threads)
