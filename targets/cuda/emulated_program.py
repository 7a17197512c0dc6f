"""Whole programs on the emulated device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qcompile.ir import Array, storage
from qcompile.target.program import Program
from targets._tvm.context import Argument, Constant, Scratch, Value
from targets.cuda.backend import CudaBackend
from targets.cuda.block import FOLDED_ATTRIBUTE
from targets.cuda.emulate import Emulator
from targets.cuda.emulated import UndefinedError
from targets.cuda.printer import Kernel

_ALIGNED = 256
"""Samples of the arena and of scratch memory begin at multiples of this."""


@dataclass(frozen=True)
class Pointer:
    """An argument of a kernel for every sample.

    Attributes:
        memory: (samples, bytes), or (1, bytes) where all samples read the same.
        offset, bytes: where in it the argument lies.
        dtype: of its elements.
    """

    memory: Array
    offset: int
    bytes: int
    dtype: Any

    def of(self, sample: int) -> Array:
        """What one sample sees."""
        row = self.memory[sample % len(self.memory)]
        return np.asarray(row[self.offset : self.offset + self.bytes].view(self.dtype))

    def all(self) -> Array:
        """From the first sample's first element to the last one's last."""
        end = (len(self.memory) - 1) * self.memory.shape[1] + self.offset + self.bytes
        return np.asarray(self.memory.reshape(-1)[self.offset : end].view(self.dtype))

    @property
    def stride(self) -> int:
        return int(self.memory.shape[1]) if len(self.memory) > 1 else 0


def run_program(
    backend: CudaBackend,
    program: Program,
    inputs: Mapping[str, Array],
    watch: Callable[[str, Emulator], None] = lambda kernel, emulator: None,
    *,
    counting: bool = False,
    backwards: bool = False,
    synchronous: bool = False,
) -> dict[str, Array]:
    """The outputs of a whole program, by output name; every kernel emulated in turn.

    Kernels see one sample after the other, folded ones all together.

    Args:
        inputs: integers by input name, each with the same number of samples.
        watch: called with each kernel's name behind its launch.
        counting, backwards, synchronous: of every `Emulator`.
    """
    graph = program.graph
    samples = len(next(iter(inputs.values())))
    places = {"arena": np.zeros((samples, -(-program.arena_bytes // _ALIGNED) * _ALIGNED), dtype=np.uint8)}
    for value, buffer in program.buffers.items():
        if buffer.place != "arena":
            dtype = storage(buffer.layout.dtype)
            given = inputs.get(value, np.zeros((samples, buffer.layout.elements), dtype=dtype))
            places[value] = np.ascontiguousarray(given, dtype=dtype).reshape(samples, -1).view(np.uint8).copy()

    def pointer(argument: Argument) -> Pointer:
        match argument:
            case Value(name):
                buffer = program.buffers[name]
                inside = buffer.place == "arena"
                memory, offset = places["arena" if inside else name], buffer.offset if inside else 0
                return Pointer(memory, offset, buffer.layout.bytes, storage(buffer.layout.dtype))
            case Scratch(size, zeroed):
                whole = np.full((samples, -(-size // _ALIGNED) * _ALIGNED), 0 if zeroed else 0x5A, dtype=np.uint8)
                return Pointer(whole, 0, size, np.dtype(np.int32))
            case Constant(_, array):
                return Pointer(array.reshape(1, -1).copy().view(np.uint8), 0, array.nbytes, array.dtype)

    for kernel in program.kernels:
        emitted = backend.emit(kernel, program)
        made, pointers = Kernel(emitted.func), [pointer(argument) for argument in emitted.arguments]
        if FOLDED_ATTRIBUTE in (emitted.func.attrs or {}):
            strides = tuple(p.stride for p in pointers)
            emulators = [
                Emulator(made, [p.all() for p in pointers], counting, backwards, synchronous, samples, strides)
            ]
        else:
            emulators = [
                Emulator(made, [p.of(i) for p in pointers], counting, backwards, synchronous) for i in range(samples)
            ]
        for emulator in emulators:
            emulator.run()
            watch(kernel.name, emulator)
        zeroed = [isinstance(argument, Scratch) and argument.zeroed for argument in emitted.arguments]
        if any(p.memory.any() for p, zero in zip(pointers, zeroed, strict=True) if zero):
            raise UndefinedError(f"{kernel.name} left behind what it found zeroed")
    found = {o.name: pointer(Value(o.value)) for o in graph.outputs}
    shapes = {o.name: graph.type_of(o.value).sample for o in graph.outputs}
    return {n: np.stack([p.of(i).reshape(shapes[n]) for i in range(samples)]) for n, p in found.items()}
