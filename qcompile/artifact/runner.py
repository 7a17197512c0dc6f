"""Running an artifact: the host quantises, the target computes in integers, the host makes reals of them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.artifact.layout import LIBRARY
from qcompile.artifact.manifest import Manifest
from qcompile.artifact.measurements import read_measurements
from qcompile.data.check import check_arrays
from qcompile.errors import ArtifactError, DeviceError, VerificationError
from qcompile.ir import Array, Graph, Grid, Input, Output
from qcompile.semantics import interp
from qcompile.semantics.grids import dequantize, quantize
from qcompile.target.backend import Backend, Executable, Quantizing, Threaded
from qcompile.target.device import Device, Portable
from qcompile.target.model import Target, host_architecture

BATCH = 64
"""Samples that are quantised and run at a time; bounds the memory of `Artifact.run`."""


@dataclass(frozen=True)
class Artifact:
    """A loaded artifact.

    Attributes:
        path: its folder.
        manifest: where it comes from.
        graph: the integer graph, whose interpretation is the reference.
        plan: `plan.json`; `bits` maps each layer to (weight bits, activation bits).
        golden_inputs, golden_outputs: integer arrays (n, …) by name.
        device: where it runs; None is this machine.
        threads: that share its loops on this machine, where its target can share them.
    """

    path: Path
    manifest: Manifest
    graph: Graph
    plan: Mapping[str, Any]
    golden_inputs: Mapping[str, Array]
    golden_outputs: Mapping[str, Array]
    device: Device | None = None
    threads: int = 1

    def on(self, device: Device | None) -> Artifact:
        """The same artifact on another device.  Raises DeviceError where its target knows no other."""
        if device is not None and not isinstance(self.backend, Portable):
            raise DeviceError(
                f"{self.path} is for {self.target.name}, which runs on this machine only", hint="leave --device out"
            )
        return replace(self, device=device)

    @property
    def library(self) -> Path:
        """The folder of the compiled library."""
        return self.path / LIBRARY

    @property
    def bits(self) -> dict[str, tuple[int, int]]:
        """Layer → (weight bits, activation bits)."""
        return {layer: (int(pair[0]), int(pair[1])) for layer, pair in self.plan["bits"].items()}

    @cached_property
    def target(self) -> Target:
        """Raises TargetError where this installation does not know the target."""
        found: Target = _registry().find_target(self.manifest.record.target)
        return found

    @cached_property
    def backend(self) -> Backend:
        """The target's code generator and runtime."""
        backend: Backend = _registry().find_backend(self.target)
        return backend

    @cached_property
    def executable(self) -> Executable:
        """The library, loaded; DeviceError where the device cannot run it."""
        if self.device is not None and isinstance(self.backend, Portable):
            return self.backend.on(self.device).load(self.library, self.graph)
        foreign = self.target.architecture not in ("", host_architecture())
        # Code for instructions the processor lacks would end the process with a signal.  Another architecture's is
        # the backend's business: it may have an emulator.
        if not foreign and (missing := sorted(set(self.target.features) - set(_registry().host_features()))):
            raise DeviceError(
                f"{self.path} is for {self.target.name}; this processor lacks {', '.join(missing)}",
                hint="run it on a machine that has them, or compile for another target: qcompile targets",
            )
        loaded: Executable = _registry().load_executable(self.target, self.library, self.graph)
        if isinstance(loaded, Threaded):
            loaded.use_threads(self.threads)
        return loaded

    @cached_property
    def _quantizer(self) -> Quantizing | None:
        return self.executable if isinstance(self.executable, Quantizing) else None

    def measurements(self) -> dict[str, Any]:
        """What was timed, empty where nothing was."""
        return read_measurements(self.path)

    def quantize(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Real inputs (n, …) → integers by input name.  Raises DataError where they do not fit the model."""
        checked = check_arrays(inputs, self.graph.inputs, "the inputs")
        return {port.name: quantize(checked[port.name], _grid(port)) for port in self.graph.inputs}

    def run_int(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Integer inputs → integer outputs on the target, by name."""
        ordered = [np.ascontiguousarray(inputs[port.name]) for port in self.graph.inputs]
        outputs = self.executable.run(ordered)
        return {out.name: array for out, array in zip(self.graph.outputs, outputs, strict=True)}

    def reference_int(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Integer inputs → the integer outputs the target must give, bit for bit."""
        return interp.run(self.graph, inputs)

    def finish(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        """Integer outputs → float32 outputs by the model's names, the host's output function included."""
        reals = {out.name: dequantize(outputs[out.name], _grid(out)) for out in self.graph.outputs}
        if self.graph.tail is None:
            return reals
        from qcompile.exec import float_exec

        return float_exec.run(self.graph.tail, reals)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Real inputs → real outputs.

        Args:
            inputs: float arrays (n, …) by input name, in the float model's own units.

        Returns:
            float32 arrays (n, …) by output name.

        Raises:
            DataError: the inputs do not fit the model.
            DeviceError: this machine cannot run the target.
        """
        found = self._run_ready(inputs)
        if found is not None:
            return found
        checked = check_arrays(inputs, self.graph.inputs, "the inputs")
        count = len(checked[self.graph.inputs[0].name])
        parts = []
        for start in range(0, count, BATCH):
            batch = {port.name: checked[port.name][start : start + BATCH] for port in self.graph.inputs}
            integers = {port.name: self._integers(batch[port.name], port) for port in self.graph.inputs}
            parts.append(self.finish(self.run_int(integers)))
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _run_ready(self, inputs: Mapping[str, Array]) -> dict[str, Array] | None:
        """`run` without ceremony for a few samples that are as they should be; None where anything is not.

        Small networks take microseconds, so looking at the inputs must not take longer.
        """
        ports = self.graph.inputs
        if len(inputs) != len(ports):
            return None
        ordered, count = [], None
        for port in ports:
            x = inputs.get(port.name)
            if type(x) is not np.ndarray or x.dtype != np.float32 or not x.flags.c_contiguous:
                return None
            if x.shape[1:] != port.type.sample or not 0 < len(x) <= BATCH or count not in (None, len(x)):
                return None
            count = len(x)
            integers = None if self._quantizer is None else self._quantizer.quantize(x, _grid(port))
            if integers is None:
                return None
            ordered.append(integers)
        outputs = self.executable.run(ordered)
        return self.finish({out.name: array for out, array in zip(self.graph.outputs, outputs, strict=True)})

    def _integers(self, x: Array, port: Input) -> Array:
        """Checked reals on the grid of an input."""
        found = None if self._quantizer is None else self._quantizer.quantize(x, _grid(port))
        return quantize(x, _grid(port)) if found is None else found

    def check_goldens(self) -> int:
        """Run the golden inputs on the target; the number of integers compared.

        Raises:
            VerificationError: an output differs from the reference.
        """
        outputs = self.run_int(self.golden_inputs)
        compared = 0
        for name, expected in self.golden_outputs.items():
            differing = int(np.count_nonzero(outputs[name] != expected))
            if differing:
                raise VerificationError(
                    f"{self.path}: {differing} of {expected.size} golden integers of output {name!r} differ",
                    hint="on this machine the library computes something else; please report it",
                )
            compared += expected.size
        return compared


def _registry() -> Any:
    # The registry lies above this package, and an artifact that is only read never needs it.
    return importlib.import_module("qcompile.pm.registry")


def _grid(port: Input | Output) -> Grid:
    if port.grid is None:
        raise ArtifactError(f"{port.name!r} has no grid")
    return port.grid
