"""The interpreter behind the backend interface: nothing is generated, the integer graph itself is what runs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from qcompile.errors import DeviceError
from qcompile.ir import Array, Graph, storage
from qcompile.semantics import interp
from qcompile.target.backend import Measurement
from qcompile.target.model import Target
from qcompile.target.program import Kernel, Program


class InterpreterExecutable:
    """Runs an integer graph with `qcompile.semantics.interp`."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph.held()

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        named = {port.name: array for port, array in zip(self._graph.inputs, inputs, strict=True)}
        outputs = interp.run(self._graph, named)
        return [outputs[out.name] for out in self._graph.outputs]

    def measure(self, threads: int, runs: int) -> Measurement:
        if threads != 1:
            raise DeviceError("the reference interpreter has no threads of its own", hint="use --threads 1")
        zeros = [np.zeros((1, *p.type.sample), storage(p.type.dtype)) for p in self._graph.inputs]
        seconds = []
        for _ in range(runs or 3):
            start = time.perf_counter()
            self.run(zeros)
            seconds.append(time.perf_counter() - start)
        return Measurement(float(np.median(seconds)), float(np.quantile(seconds, 0.9)), len(seconds), 1)


class ReferenceBackend:
    """`qcompile.target.backend.Backend` over the interpreter."""

    def __init__(self, target: Target) -> None:
        self.target = target

    def fingerprint(self) -> str:
        return f"interpreter numpy {np.__version__}"

    def variants(self, kernel: Kernel, program: Program) -> tuple[str, ...]:
        return ("interpreter",)

    def measure(self, works: Sequence[tuple[Kernel, Program]], threads: int) -> list[Measurement]:
        """Time each kernel's nodes on zeros."""
        results = []
        for kernel, program in works:
            graph = program.graph
            values = {
                v: np.zeros((1, *graph.type_of(v).sample), storage(graph.type_of(v).dtype)) for v in kernel.inputs
            }
            start = time.perf_counter()
            for node in kernel.nodes:
                consts = {role: graph.consts[name] for role, name in node.consts}
                values[node.name] = interp.evaluate(node, [values[v] for v in node.inputs], consts)
            seconds = time.perf_counter() - start
            results.append(Measurement(seconds, seconds, 1, threads))
        return results

    def build(self, program: Program, directory: Path) -> Mapping[str, str]:
        return {"compiler": "none", "entry": "interpreter"}

    def load(self, directory: Path, graph: Graph) -> InterpreterExecutable:
        return InterpreterExecutable(graph)

    def float_operations(self, directory: Path, program: Program | None = None) -> list[str]:
        return []
