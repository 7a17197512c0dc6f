"""Running a program on a GPU: memory planned once, all launches in one graph for each batch size."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.ir import Array, Graph, storage
from qcompile.target.backend import Measurement, enough_runs
from targets._tvm.runner import pack_parameters
from targets.cuda import driver, images

BINARY = "kernels.bin"
SOURCE = "kernels.cu"
DESCRIPTION = "kernels.json"
_MOST_SAMPLES = 64
"""Samples of one launch; more are run in turns."""
_KEPT_BATCHES = 4
"""Batch sizes whose memory and graph are kept; those used longest ago go first."""
_WARM = 3
_REPEATS, _MOST_COPIES = 64, 32
"""Launches of one kernel in a graph that times it, and copies of its parameters that they go through in turn."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel: its symbol, blocks, for every pointer (place, byte offset), and its numbers.

    Places are `params`, `arena`, `scratch`, `zeroed`, `input<i>` and `output<i>`.
    """

    symbol: str
    blocks: int
    pointers: tuple[tuple[str, int], ...]
    numbers: tuple[int, ...] = ()

    def to_json(self) -> list[Any]:
        return [self.symbol, self.blocks, [list(p) for p in self.pointers], list(self.numbers)]

    @staticmethod
    def from_json(described: Sequence[Any]) -> Launch:
        symbol, blocks, pointers, numbers = described
        return Launch(symbol, blocks, tuple((place, offset) for place, offset in pointers), tuple(numbers))


class Batch:
    """Memory and the captured graph for a number of samples."""

    def __init__(self, sizes: Mapping[str, int], samples: int, stream: driver.Stream) -> None:
        self.samples = samples
        self.memory = {place: driver.Memory(size * samples) for place, size in sizes.items()}
        for memory in self.memory.values():
            stream.clear(memory)
        self.graph = driver.Graph()


class CudaExecutable:
    """A built program on the first GPU of this machine; threads take turns.

    Args:
        directory: where `CudaBackend.build` put it.
        graph: the integer graph it was built from, whose constants it reads.

    Raises:
        DeviceError: there is no driver or no GPU, or the GPU is older than every architecture it was built for.
    """

    def __init__(self, directory: Path, graph: Graph) -> None:
        described = json.loads((directory / DESCRIPTION).read_text())
        self._lock = threading.Lock()
        self.device = driver.device()
        chosen = images.choose((directory / BINARY).read_bytes(), described["images"], self.device.architecture)
        self._threads = int(described["threads"])
        self._launches = [Launch.from_json(one) for one in described["launches"]]
        params = pack_parameters(described, graph)
        self._inputs = [(p.type.sample, storage(p.type.dtype)) for p in graph.inputs]
        shown = [graph.type_of(out.value) for out in graph.outputs]
        self._outputs = [(t.sample, storage(t.dtype)) for t in shown]
        self._sizes = {"arena": int(described["arena_bytes"])}
        self._sizes |= described["own_bytes"]
        for kind, ports in (("input", self._inputs), ("output", self._outputs)):
            self._sizes |= {f"{kind}{i}": _bytes(*port) for i, port in enumerate(ports)}
        self._batches: dict[int, Batch] = {}
        with self.device.current():
            self._modules = [(driver.Module(image), names) for image, names in chosen]
            wanted = {launch.symbol for launch in self._launches}
            self._functions = {n: module.function(n) for module, names in self._modules for n in names if n in wanted}
            self._stream = driver.Stream()
            self._params = driver.Memory(params.size)
            self._stream.write(self._params, params.ctypes.data, params.size)
            self._stream.synchronize()

    def _batch(self, samples: int) -> Batch:
        batch = self._batches.pop(samples, None)
        if batch is None:
            while len(self._batches) >= _KEPT_BATCHES:
                del self._batches[next(iter(self._batches))]
            batch = Batch(self._sizes, samples, self._stream)
            with self._stream.capture(batch.graph):
                for launch in self._launches:
                    self._launch(launch, batch, self._params)
        # The one used last comes last.
        self._batches[samples] = batch
        return batch

    def _launch(self, launch: Launch, batch: Batch, params: driver.Memory, moved: int = 0) -> None:
        pointers = []
        for place, offset in launch.pointers:
            if place == "params":
                pointers.append((params.address + offset + moved, 0))
            else:
                pointers.append((batch.memory[place].address + offset, self._sizes[place]))
        grid = (launch.blocks, batch.samples)
        self._stream.launch(self._functions[launch.symbol], grid, self._threads, pointers, launch.numbers)

    def _run(self, inputs: Sequence[Array]) -> list[Array]:
        results = [np.zeros((len(inputs[0]), *shape), dtype=dtype) for shape, dtype in self._outputs]
        try:
            batch = self._batch(len(inputs[0]))
            for i, array in enumerate(inputs):
                self._stream.write(batch.memory[f"input{i}"], array.ctypes.data, array.nbytes)
            batch.graph.launch(self._stream)
            for i, array in enumerate(results):
                self._stream.read(batch.memory[f"output{i}"], array.ctypes.data, array.nbytes)
            self._stream.synchronize()
        except BaseException:
            # Memory may be given back when this is left: nothing may still be writing to it.
            self._stream.settle()
            raise
        return results

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """As `Executable.run`; whole batches at once, up to _MOST_SAMPLES samples."""
        ready = [
            np.ascontiguousarray(x, dtype=dtype).reshape(len(x), *shape)
            for x, (shape, dtype) in zip(inputs, self._inputs, strict=True)
        ]
        results = [[np.zeros((0, *shape), dtype=dtype)] for shape, dtype in self._outputs]
        with self._lock, self.device.current():
            for start in range(0, len(ready[0]), _MOST_SAMPLES):
                part = self._run([np.ascontiguousarray(x[start : start + _MOST_SAMPLES]) for x in ready])
                for all_, some in zip(results, part, strict=True):
                    all_.append(some)
        return [np.concatenate(parts) for parts in results]

    def measure(self, threads: int, runs: int, samples: int = 1) -> Measurement:
        """Time the graph of a batch on the device, copies from and to the host excluded."""
        with self._lock, self.device.current():
            return self._time(self._batch(samples).graph, threads, runs)

    def measure_kernel(self, threads: int, resident: int) -> Measurement:
        """Time the only kernel of a program among others: many launches in one graph, and an equal share of its time.

        Args:
            resident: bytes of weights of the whole program: parameters are copied as often as it takes to fill them,
                so that they are as far from the processor as there.
        """
        (launch,) = self._launches
        with self._lock, self.device.current():
            batch = Batch(self._sizes, 1, self._stream)
            size = -(-self._params.size // 256) * 256
            copies = max(1, min(_MOST_COPIES, resident // size))
            packed = np.zeros((copies, size), dtype=np.uint8)
            self._stream.read(self._params, packed.ctypes.data, self._params.size)
            self._stream.synchronize()
            packed[1:] = packed[0]
            params, noise = driver.Memory(packed.nbytes), np.random.default_rng(0)
            self._stream.write(params, packed.ctypes.data, packed.nbytes)
            # Multiplying zeros takes less power, and so less time, than multiplying data.
            for memory in (memory for place, memory in batch.memory.items() if place in ("arena", "input0")):
                filling = noise.integers(0, 16, memory.size, dtype=np.uint8)
                self._stream.write(memory, filling.ctypes.data, memory.size)
            with self._stream.capture(batch.graph):
                for turn in range(_REPEATS):
                    self._launch(launch, batch, params, turn % copies * size)
            whole = self._time(batch.graph, threads, 0)
            return Measurement(whole.median / _REPEATS, whole.p90 / _REPEATS, whole.runs, threads)

    def _time(self, graph: driver.Graph, threads: int, runs: int) -> Measurement:
        start, end = driver.Event(), driver.Event()

        def once() -> float:
            start.record(self._stream)
            graph.launch(self._stream)
            end.record(self._stream)
            return end.seconds_since(start)

        warm = [once() for _ in range(_WARM)]
        times = np.array([once() for _ in range(runs or enough_runs(warm[-1]))])
        return Measurement(float(np.median(times)), float(np.quantile(times, 0.9)), len(times), threads)


def _bytes(shape: Sequence[int], dtype: Any) -> int:
    return math.prod(shape) * int(np.dtype(dtype).itemsize)
