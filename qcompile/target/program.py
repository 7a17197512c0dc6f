"""What a backend compiles: kernels over values with physical layouts at planned addresses.  Data only.

The passes under `passes/lower` make a Program from an integer graph; a backend (`qcompile.target.backend`) turns it
into a library.  Logically every value stays NCHW; a Layout says where each element lies.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from qcompile.ir import Graph, Node, storage

Halo = tuple[int, int, int, int]
Place = Literal["input", "output", "arena"]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the elements of one sample lie.

    Attributes:
        shape: logical shape of the sample, without the batch: (C, H, W), (K,), …
        dtype: IR dtype (`u4` … `u8`, `i32`); stored in uint8 or int32.
        pixel: 0 for row-major order of `shape`.  Otherwise (rank 3 only) channels-last: element (c, h, w) lies at
            ((h + top)·(left + W + right) + (w + left))·pixel + c, and pixel ≥ C.
        halo: (top, left, bottom, right) pixels around a channels-last image.  The kernel that produces the value
            fills them with `fill`, so that its readers never test borders.
        fill: the integer in the halo (the zero point).
    """

    shape: tuple[int, ...]
    dtype: str
    pixel: int = 0
    halo: Halo = (0, 0, 0, 0)
    fill: int = 0

    @property
    def channels_last(self) -> bool:
        return self.pixel > 0

    @property
    def rows(self) -> int:
        """Rows of a channels-last image, halo included."""
        return self.shape[1] + self.halo[0] + self.halo[2]

    @property
    def cols(self) -> int:
        """Pixels in a row of a channels-last image, halo included."""
        return self.shape[2] + self.halo[1] + self.halo[3]

    @property
    def elements(self) -> int:
        """Elements of the buffer, halo and channel padding included."""
        return self.rows * self.cols * self.pixel if self.pixel else math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * storage(self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class Kernel:
    """One compiled loop nest: an anchor node, and behind it the requant fused into its epilogue.

    Attributes:
        name: the value it produces (the name of its last node).
        nodes: the anchor, then what is fused behind it, in order; a value between two of them is never stored.
        inputs: the stored values it reads, in the order in which the nodes read them, without repetition.
        variant: the implementation, one of `Backend.variants`; empty until chosen.
    """

    name: str
    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    variant: str = ""

    @property
    def anchor(self) -> Node:
        return self.nodes[0]

    @property
    def epilogue(self) -> Node | None:
        """The fused requant, if any."""
        return self.nodes[1] if len(self.nodes) > 1 else None


@dataclass(frozen=True, slots=True)
class Buffer:
    """A value's place: `offset` bytes into the arena, or the caller's array number `offset` of inputs or outputs.

    The caller's arrays are row-major (NCHW).
    """

    layout: Layout
    place: Place
    offset: int


@dataclass(frozen=True)
class Program:
    """Kernels in execution order, the buffer of every stored value, and the graph whose constants they read."""

    graph: Graph
    kernels: tuple[Kernel, ...]
    buffers: Mapping[str, Buffer]
    arena_bytes: int

    @cached_property
    def resident(self) -> int:
        """All weights at one byte each, rounded up to a power of two between 32 KiB and 16 MiB.

        Says which cache keeps the weights from one inference to the next; equal for every plan of a network.
        """
        consts = self.graph.consts
        names = {name for kernel in self.kernels for node in kernel.nodes for role, name in node.consts if role == "w"}
        total = sum(consts[name].size for name in names)
        return min(1 << 24, max(1 << 15, 1 << max(0, total - 1).bit_length()))


@dataclass(frozen=True, slots=True)
class KernelWork:
    """A kernel without its weights: everything its speed depends on.  Equal works share one measurement.

    Attributes:
        nodes: operator, attributes, type, shapes of constants and operands of each node.
        inputs, output: layouts.
        variant: the implementation.
        resident: that of its program: whether its weights are still in a cache when its turn comes.
    """

    nodes: tuple[tuple[object, ...], ...]
    inputs: tuple[Layout, ...]
    output: Layout
    variant: str
    resident: int = 0

    @property
    def key(self) -> str:
        """A short stable name for caches: the hash of the description."""
        return _hash(repr((self.nodes, self.inputs, self.output, self.variant, self.resident)))


@dataclass(frozen=True, slots=True)
class ProgramWork:
    """A whole program without its weights: the keys of its kernels, in order, each with its variant."""

    kernels: tuple[str, ...]

    @property
    def key(self) -> str:
        """A short stable name for caches."""
        return _hash(repr(self.kernels))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def work_of_program(program: Program) -> ProgramWork:
    """The description under which a whole program is measured and cached; every variant is chosen."""
    return ProgramWork(tuple(work_of(kernel, program).key for kernel in program.kernels))


_VALUES_ONLY = frozenset({"zp", "lo", "hi", "zeros", "pad_value", "value", "weight_bits", "dtype"})
"""Attributes that change results but not the time they take; a variant's name says which bits it relies on."""


def work_of(kernel: Kernel, program: Program, variant: str | None = None) -> KernelWork:
    """The description under which a kernel of a program is measured and cached."""
    described = []
    for node in kernel.nodes:
        attrs = {k: v for k, v in node.attrs.items() if k not in _VALUES_ONLY}
        shapes = tuple((role, program.graph.consts[name].shape) for role, name in node.consts)
        type_ = node.type.with_dtype(_timed_dtype(node.type.dtype))
        described.append((node.op, tuple(sorted(attrs.items())), type_, shapes, _operands(kernel, node)))
    return KernelWork(
        tuple(described),
        tuple(_timed(program.buffers[value].layout) for value in kernel.inputs),
        _timed(program.buffers[kernel.name].layout),
        kernel.variant if variant is None else variant,
        program.resident,
    )


def _timed(layout: Layout) -> Layout:
    """The layout without what does not matter to time: the fill, and bits below the storage width."""
    return replace(layout, fill=0, dtype=_timed_dtype(layout.dtype))


def _timed_dtype(dtype: str) -> str:
    return "u8" if dtype[0] == "u" else dtype


def _operands(kernel: Kernel, node: Node) -> tuple[int, ...]:
    """Which input of the kernel each operand of a node is; −1 stands for the value of the node before it."""
    return tuple(kernel.inputs.index(v) if v in kernel.inputs else -1 for v in node.inputs)
