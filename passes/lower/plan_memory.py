"""plan-memory: the layout of every stored value and its place in one arena."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from passes.lower.form_kernels import form_kernels
from qcompile.ir import Graph
from qcompile.pm.base import ON_INT, Levels, Pass, PassContext, PassResult, Report
from qcompile.target.model import Target
from qcompile.target.program import Buffer, Halo, Kernel, Layout, Program

_PADDED = frozenset({"conv2d", "sum_pool"})
"""Operators that read a halo of the zero point instead of testing borders."""


@dataclass(frozen=True)
class PlanMemory(Pass):
    """Give every stored value a layout and a fixed offset; values that are never alive together share bytes.

    Offsets are found largest buffer first, each at the lowest offset where it fits between the buffers that are
    alive with it (greedy by size: Pisarchyk and Lee 2020, "Efficient Memory Management for Deep Neural Net
    Inference", section 5.2).
    """

    name: ClassVar[str] = "plan-memory"
    levels: ClassVar[Levels] = ON_INT

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        program = plan_program(graph, ctx.target)
        bound = lower_bound(program)
        report = Report(
            done=(f"arena {program.arena_bytes} bytes; no plan of these buffers needs less than {bound}",),
            facts={"arena_bytes": program.arena_bytes, "arena_lower_bound": bound},
        )
        return PassResult(graph, report, program)


def plan_program(graph: Graph, target: Target) -> Program:
    """Kernels, layouts and offsets of an integer graph; variants are still to be chosen."""
    kernels = form_kernels(graph)
    layouts = choose_layouts(graph, kernels, target)
    buffers: dict[str, Buffer] = {}
    for i, port in enumerate(graph.inputs):
        buffers[port.name] = Buffer(layouts[port.name], "input", i)
    for i, out in enumerate(graph.outputs):
        buffers[out.value] = Buffer(layouts[out.value], "output", i)
    lives = lifetimes(kernels)
    arena = {kernel.name: layouts[kernel.name] for kernel in kernels if kernel.name not in buffers}
    offsets, size = place(arena, lives, target.alignment)
    for value, layout in arena.items():
        buffers[value] = Buffer(layout, "arena", offsets[value])
    return Program(graph, kernels, buffers, size)


def choose_layouts(graph: Graph, kernels: Sequence[Kernel], target: Target) -> dict[str, Layout]:
    """Row-major at the boundary and for anything but images; images channels-last with the halo their readers need."""
    layouts = {p.name: Layout(p.type.sample, p.type.dtype) for p in graph.inputs}
    for kernel in kernels:
        type_ = kernel.nodes[-1].type
        if len(type_.sample) != 3 or kernel.name in graph.output_values:
            layouts[kernel.name] = Layout(type_.sample, type_.dtype)
            continue
        halo, fill = _halo(kernel.name, kernels)
        layouts[kernel.name] = Layout(type_.sample, type_.dtype, target.pixel(type_.sample[0]), halo, fill)
    return layouts


def _halo(value: str, kernels: Sequence[Kernel]) -> tuple[Halo, int]:
    halo, fill = (0, 0, 0, 0), 0
    for kernel in kernels:
        anchor = kernel.anchor
        if anchor.op in _PADDED and anchor.inputs[0] == value and any(anchor.attrs.ints("pad")):
            top, left, bottom, right = (max(a, b) for a, b in zip(halo, anchor.attrs.ints("pad"), strict=True))
            halo, fill = (top, left, bottom, right), anchor.attrs.int("pad_value")
    return halo, fill


def lifetimes(kernels: Sequence[Kernel]) -> dict[str, tuple[int, int]]:
    """Value → (index of the kernel that writes it, index of the last one that reads it)."""
    lives: dict[str, tuple[int, int]] = {}
    for i, kernel in enumerate(kernels):
        for value in kernel.inputs:
            if value in lives:
                lives[value] = (lives[value][0], i)
        lives[kernel.name] = (i, i)
    return lives


def place(
    layouts: Mapping[str, Layout], lives: Mapping[str, tuple[int, int]], alignment: int
) -> tuple[dict[str, int], int]:
    """Offsets of all buffers, and the arena's size in bytes."""
    offsets: dict[str, int] = {}
    placed: list[tuple[int, int, str]] = []
    for value in sorted(layouts, key=lambda v: (-layouts[v].bytes, lives[v], v)):
        size, (start, end) = _aligned(layouts[value].bytes, alignment), lives[value]
        offset = 0
        for low, high, other in sorted(placed):
            other_start, other_end = lives[other]
            if other_start > end or other_end < start:
                continue
            if offset + size <= low:
                break
            offset = max(offset, high)
        offsets[value] = offset
        placed.append((offset, offset + size, value))
    return offsets, max((high for _, high, _ in placed), default=0)


def _aligned(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def lower_bound(program: Program) -> int:
    """The largest sum of buffers alive at one kernel: no plan of the same buffers can need less."""
    lives = lifetimes(program.kernels)
    sizes = {v: b.layout.bytes for v, b in program.buffers.items() if b.place == "arena"}
    return max(
        (sum(s for v, s in sizes.items() if lives[v][0] <= i <= lives[v][1]) for i in range(len(program.kernels))),
        default=0,
    )
