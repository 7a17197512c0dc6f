"""Running a library from Python, and timing it."""

from __future__ import annotations

import ctypes
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.ir import Array, Graph, Grid, storage
from qcompile.target.backend import Measurement, enough_runs
from qcompile.target.clock import probe
from targets._tvm.quantizer import BOUNDARY, NativeQuantizer, address
from targets._tvm.recipes import Recipe
from targets._tvm.shared_object import open_shared_object
from targets._tvm.threads import connect, set_threads

ENTRY = "qcompile_run"
LIBRARY = "library.so"
DESCRIPTION = "kernels.json"
ALIGNMENT = 64
SLACK = 128
"""Bytes behind arena and parameters: kernels may read, never write, a few elements behind a buffer."""

_LARGE = 1 << 18
"""Packed bytes from which the temporaries of packing are worth returning."""


def open_library(path: Path) -> ctypes.CDLL:
    """Load a library and connect its shared loops to this process's threads."""
    library = open_shared_object(path)
    connect(library, path.parent)
    return library


def aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def aligned_array(size: int) -> Array:
    """`size` zero bytes at an aligned address."""
    raw = np.zeros(size + ALIGNMENT, dtype=np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size]


def pointer(array: Array) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def pack_parameters(described: Mapping[str, Any], graph: Graph) -> Array:
    """The parameters of a library as its kernels read them, from `kernels.json` and the integer graph."""
    params, arrays = aligned_array(described["params_bytes"]), dict[str, Array]()
    for offset, *fields in described["constants"]:
        recipe = Recipe.from_json(fields)
        # A loaded graph reads, decodes and hashes a constant whenever it is asked for it, and makes a new array;
        # recipes that share one follow each other.
        arrays = {name: arrays[name] if name in arrays else graph.consts[name] for name in recipe.constants}
        if recipe.pack_into(arrays, params[offset:]) >= _LARGE:
            return_heap()
    return params


def return_heap() -> None:
    """Give freed memory back to the system, where the C library can: glibc keeps dozens of MiB behind large arrays."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


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
        self._params = pack_parameters(described, graph)
        self._arena = aligned_array(described["arena_bytes"])
        self._inputs = [(p.type.sample, storage(p.type.dtype)) for p in graph.inputs]
        shown = [graph.type_of(out.value) for out in graph.outputs]
        self._outputs = [(t.sample, storage(t.dtype)) for t in shown]
        ports = [*self._inputs, *self._outputs]
        self._steps = [math.prod(shape) * dtype.itemsize for shape, dtype in ports]
        self._entry.argtypes = [ctypes.c_void_p] * (2 + len(ports))
        self._params_at, self._arena_at = address(self._params), address(self._arena)
        boundary = directory / BOUNDARY
        self._quantizer = NativeQuantizer(boundary) if boundary.exists() else None
        self._threads = 1

    def use_threads(self, threads: int) -> None:
        self._threads = threads

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        set_threads(self._threads)
        batch = len(inputs[0])
        ready = [
            np.ascontiguousarray(x, dtype=dtype).reshape(batch, *shape)
            for x, (shape, dtype) in zip(inputs, self._inputs, strict=True)
        ]
        results: list[Array] = [np.empty((batch, *shape), dtype=dtype) for shape, dtype in self._outputs]
        arrays = [*ready, *results]
        starts = [address(array) for array in arrays]
        for i in range(batch):
            samples = [at + i * step for at, step in zip(starts, self._steps, strict=True)] if i else starts
            self._entry(self._params_at, self._arena_at, *samples)
        return results

    def quantize(self, x: Array, grid: Grid) -> Array | None:
        return None if self._quantizer is None else self._quantizer.quantize(x, grid)

    def measure(self, threads: int, runs: int) -> Measurement:
        set_threads(threads)
        rng = np.random.default_rng(0)
        sample = [rng.integers(0, 2, shape).astype(dtype) for shape, dtype in self._inputs]
        results = [np.zeros(shape, dtype=dtype) for shape, dtype in self._outputs]
        arguments = [address(a) for a in (self._params, self._arena, *sample, *results)]
        call, clock = self._entry, time.perf_counter_ns
        start = clock()
        for _ in range(3):
            call(*arguments)
        runs = runs or enough_runs((clock() - start) * 1e-9 / 3)
        for _ in range(runs // 10):
            call(*arguments)
        times = np.empty(runs)
        before = probe()
        for i in range(runs):
            start = clock()
            call(*arguments)
            times[i] = clock() - start
        seconds = times * 1e-9
        clock_now = min(before, probe())
        return Measurement(float(np.median(seconds)), float(np.quantile(seconds, 0.9)), runs, threads, clock_now)
