"""What every kernel generator works on: one kernel of a program, its layouts and constants, and the
parameters it asks for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from tvm import tirx as tir

from qcompile.ir import Array, Node, storage
from qcompile.target.program import Kernel, Layout, Program
from targets._tvm.builder import Builder, Expr, const
from targets._tvm.isa import Isa
from targets._tvm.recipes import Recipe


@dataclass(frozen=True)
class Constant:
    """An argument that points at packed parameters."""

    recipe: Recipe
    array: Array


@dataclass(frozen=True, slots=True)
class Value:
    """An argument that points at a stored value."""

    name: str


@dataclass(frozen=True, slots=True)
class Scratch:
    """An argument that points at memory only this kernel uses while it runs.

    Attributes:
        zeroed: all zeros when the kernel begins, which must leave it so.
    """

    bytes: int
    zeroed: bool = False


Argument = Constant | Value | Scratch


@dataclass(frozen=True)
class Emitted:
    """A generated kernel: its function and what each of its pointer parameters is bound to, in order."""

    func: Any
    arguments: tuple[Argument, ...]


@dataclass(frozen=True, slots=True)
class Stored:
    """A stored value inside a kernel: the pointer parameter and where its elements lie."""

    buffer: Any
    layout: Layout

    def address(self, coords: Sequence[Expr]) -> Expr:
        """Flat element index of logical coordinates, which may point into the halo."""
        layout = self.layout
        if layout.channels_last:
            c, h, w = coords
            return ((h + layout.halo[0]) * layout.cols + (w + layout.halo[1])) * layout.pixel + c
        return flat_index(coords, layout.shape)


def flat_index(coords: Sequence[Expr], shape: Sequence[int]) -> Expr:
    """Row-major index."""
    index: Expr = const(0)
    for coord, size in zip(coords, shape, strict=True):
        index = index * size + coord
    return index


class Context:
    """One kernel being generated."""

    def __init__(self, kernel: Kernel, program: Program, isa: Isa, *, threaded: bool = True) -> None:
        self.kernel = kernel
        self.program = program
        self.isa = isa
        self._threaded = threaded
        self.b = Builder()
        self._arguments: list[Argument] = []
        self._stored: dict[str, Stored] = {}
        self._counts: dict[int, Any] = {}

    @cached_property
    def output(self) -> Stored:
        return self.stored(self.kernel.name)

    @property
    def anchor(self) -> Node:
        return self.kernel.anchor

    @property
    def out_layout(self) -> Layout:
        return self.layout(self.kernel.name)

    def layout(self, value: str) -> Layout:
        return self.program.buffers[value].layout

    def const(self, node: Node, role: str) -> Array:
        return self.program.graph.const(node, role)

    def const_or(self, node: Node, role: str) -> Array | None:
        return self.program.graph.const_or(node, role)

    def stored(self, value: str) -> Stored:
        """The pointer to a stored value; one parameter per value."""
        if value not in self._stored:
            layout = self.layout(value)
            pointer = self.b.pointer(f"a{len(self._arguments)}", storage(layout.dtype).name)
            self._arguments.append(Value(value))
            self._stored[value] = Stored(pointer, layout)
        return self._stored[value]

    def pack(self, recipe: str, *constants: str | None, **params: Any) -> Constant:
        """Packed parameters, not yet a pointer."""
        made = Recipe(recipe, tuple(c for c in constants if c is not None), params)
        return Constant(made, made.pack(self.program.graph.consts))

    def constant(self, packed: Constant) -> Any:
        """A pointer to packed parameters (int8, uint8, int16 or int32)."""
        pointer = self.b.pointer(f"a{len(self._arguments)}", packed.array.dtype.name)
        self._arguments.append(packed)
        return pointer

    def opaque(self, count: int) -> Expr:
        """A loop count the compiler cannot see, read from a parameter: it must not unroll such a loop.

        Unrolled, LLVM's scheduler moves the loads of several steps to the front and spills accumulators for them,
        which costs up to half of the speed of a register tile.
        """
        if count == 1:
            return 1
        if count not in self._counts:
            self._counts[count] = self.constant(self.pack("literal", values=[count]))
        # The compiler must know that the body runs, or it prepares for both cases.
        return self.b.let(tir.max(self.b.load(self._counts[count], 0), const(1)))

    def scratch(self, dtype: str, elements: int, *, zeroed: bool = False) -> Any:
        pointer = self.b.pointer(f"a{len(self._arguments)}", dtype)
        self._arguments.append(Scratch(elements * np.dtype(dtype).itemsize, zeroed))
        return pointer

    def parallel_kind(self, operations: int, extent: int) -> str:
        """Whether a loop is worth sharing among threads."""
        return "parallel" if self._is_shared(operations, extent) else "serial"

    @contextmanager
    def share(self, operations: int, units: int) -> Iterator[tuple[Expr, Expr]]:
        """Work of `operations` multiply-adds in `units` pieces: (first, count) of a thread's own, or of all."""
        if not self._is_shared(operations, units):
            yield const(0), const(units)
            return
        with self.b.share(units) as own:
            yield own

    def _is_shared(self, operations: int, units: int) -> bool:
        return self._threaded and operations >= self.isa.parallel_operations and units > 1

    def finish(self) -> Emitted:
        return Emitted(self.b.function("kernel"), tuple(self._arguments))
