"""Running a program on a GPU: memory planned once, all launches in one graph for each batch size."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.ir import Array, Graph, storage
from qcompile.target.backend import Measurement, enough_runs
from targets._tvm.packing import Recipe
from targets.cuda import driver

BINARY = "kernels.fatbin"
SOURCE = "kernels.cu"
DESCRIPTION = "kernels.json"
_MOST_SAMPLES = 64
"""Samples of one launch; more are run in turns."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel: its symbol, blocks, and for every pointer (place, byte offset).

    Places are `params`, `arena`, `input<i>` and `output<i>`.
    """

    symbol: str
    blocks: int
    pointers: tuple[tuple[str, int], ...]

    def to_json(self) -> list[Any]:
        return [self.symbol, self.blocks, [list(p) for p in self.pointers]]

    @staticmethod
    def from_json(described: Sequence[Any]) -> Launch:
        return Launch(described[0], described[1], tuple((place, offset) for place, offset in described[2]))


class Batch:
    """Memory and the captured graph for a number of samples."""

    def __init__(self, sizes: Mapping[str, int], samples: int) -> None:
        self.samples = samples
        self.memory = {place: driver.Memory(size * samples) for place, size in sizes.items()}
        for memory in self.memory.values():
            memory.clear()
        self.graph: driver.Graph | None = None


class CudaExecutable:
    """A built program on the first GPU of this machine.

    Args:
        directory: where `CudaBackend.build` put it.
        graph: the integer graph it was built from, whose constants it reads.

    Raises:
        DeviceError: there is no driver or no GPU, or the GPU is older than every architecture it was built for.
    """

    def __init__(self, directory: Path, graph: Graph) -> None:
        described = json.loads((directory / DESCRIPTION).read_text())
        self.device = driver.Device()
        self._module = driver.Module((directory / BINARY).read_bytes())
        self._threads = int(described["threads"])
        launches = [Launch.from_json(one) for one in described["launches"]]
        self._launches = [(self._module.function(one.symbol), one) for one in launches]
        params = np.zeros(described["params_bytes"], dtype=np.uint8)
        for offset, *recipe in described["constants"]:
            packed = Recipe.from_json(recipe).pack(graph.consts)
            params[offset : offset + packed.nbytes] = packed.reshape(-1).view(np.uint8)
        self._params = driver.Memory(params.size)
        self._params.write(params.ctypes.data, params.size)
        self._stream = driver.Stream()
        self._inputs = [(p.type.sample, storage(p.type.dtype)) for p in graph.inputs]
        shown = [graph.type_of(out.value) for out in graph.outputs]
        self._outputs = [(t.sample, storage(t.dtype)) for t in shown]
        self._sizes = {"arena": int(described["arena_bytes"])}
        for kind, ports in (("input", self._inputs), ("output", self._outputs)):
            self._sizes |= {f"{kind}{i}": _bytes(*port) for i, port in enumerate(ports)}
        self._batches: dict[int, Batch] = {}

    def _batch(self, samples: int) -> Batch:
        if samples not in self._batches:
            batch = Batch(self._sizes, samples)
            self._stream.begin_capture()
            for function, launch in self._launches:
                pointers = [self._pointer(batch, place, offset) for place, offset in launch.pointers]
                self._stream.launch(function, launch.blocks, samples, self._threads, pointers)
            batch.graph = self._stream.end_capture()
            self._batches[samples] = batch
        return self._batches[samples]

    def _pointer(self, batch: Batch, place: str, offset: int) -> tuple[int, int]:
        if place == "params":
            return self._params.address.value + offset, 0
        return batch.memory[place].address.value + offset, self._sizes[place]

    def _run(self, inputs: Sequence[Array]) -> list[Array]:
        batch = self._batch(len(inputs[0]))
        for i, array in enumerate(inputs):
            batch.memory[f"input{i}"].write(array.ctypes.data, array.nbytes)
        assert batch.graph is not None
        batch.graph.launch(self._stream)
        self._stream.synchronize()
        results = [np.zeros((batch.samples, *shape), dtype=dtype) for shape, dtype in self._outputs]
        for i, array in enumerate(results):
            batch.memory[f"output{i}"].read(array.ctypes.data, array.nbytes)
        return results

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """As `Executable.run`; whole batches at once, up to _MOST_SAMPLES samples."""
        ready = [
            np.ascontiguousarray(x, dtype=dtype).reshape(len(x), *shape)
            for x, (shape, dtype) in zip(inputs, self._inputs, strict=True)
        ]
        parts = [
            self._run([np.ascontiguousarray(x[start : start + _MOST_SAMPLES]) for x in ready])
            for start in range(0, len(ready[0]), _MOST_SAMPLES)
        ]
        return [np.concatenate([part[i] for part in parts]) for i in range(len(self._outputs))]

    def measure(self, threads: int, runs: int, samples: int = 1) -> Measurement:
        """Time the graph of a batch on the device, copies from and to the host excluded."""
        batch = self._batch(samples)
        assert batch.graph is not None

        def once() -> float:
            start, end = driver.Event(), driver.Event()
            start.record(self._stream)
            batch.graph.launch(self._stream)  # type: ignore[union-attr]
            end.record(self._stream)
            return end.seconds_since(start)

        warm = [once() for _ in range(3)]
        times = np.array([once() for _ in range(runs or enough_runs(warm[-1]))])
        return Measurement(float(np.median(times)), float(np.quantile(times, 0.9)), len(times), threads)


def _bytes(shape: Sequence[int], dtype: Any) -> int:
    return math.prod(shape) * int(np.dtype(dtype).itemsize)
