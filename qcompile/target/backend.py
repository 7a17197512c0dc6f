"""The interface between the framework and a machine.  Implementations live in `targets/` (the only home of TVM)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from qcompile.ir import Array
from qcompile.target.program import Kernel, Program


@dataclass(frozen=True, slots=True)
class Measurement:
    """Seconds of one call: median and spread over `runs` timed calls, and the conditions."""

    median: float
    p90: float
    runs: int
    threads: int


class Executable(Protocol):
    """A built program, loaded and ready to run."""

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Row-major integer arrays with a batch dimension, in the order of the graph's inputs and outputs."""

    def measure(self, threads: int, runs: int) -> Measurement:
        """Time single-sample calls end to end, from integer input to integer output."""


class Backend(Protocol):
    """One machine's code generator.  Every result equals `qcompile.semantics.interp` bit for bit."""

    def variants(self, kernel: Kernel, program: Program) -> tuple[str, ...]:
        """Implementations that are legal for this kernel and these weights (proved by ranges), preferred first."""

    def measure(
        self, works: Sequence[tuple[Kernel, Program]], threads: int
    ) -> list[Measurement]:
        """Time each kernel (its `variant` is set) alone on the device, caches warm, batch 1.

        May build several in parallel and measures them one at a time.
        """

    def build(self, program: Program, directory: Path) -> Mapping[str, str]:
        """Write the library and its packed parameters into `directory`; equal programs give equal bytes.

        Returns:
            Facts for the manifest (compiler version, target string, entry point), all deterministic.
        """

    def load(self, program_directory: Path, graph_inputs: Sequence[tuple[int, ...]]) -> Executable: ...

    def float_operations(self, directory: Path) -> list[str]:
        """Floating-point operations found in the kernels' IR and machine code; empty where the build is clean."""
