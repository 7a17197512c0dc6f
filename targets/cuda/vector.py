"""Kernels that compute elements on their own, 16 or 4 neighbouring ones in a thread: pooling, requantization,
products, tables, copies, and what else the shared kernels do with vectors."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from qcompile.target.program import Kernel, Program, work_of
from targets._tvm.context import Constant, Context, Emitted, Value
from targets._tvm.isa import PortableIsa, Threads
from targets._tvm.kernels import generic
from targets.cuda.matrix import alignment
from targets.cuda.vectors import Refused, Scalarizer

_ALIGNED = 16
"""Of packed parameters, at least."""
_BUSY = 1 << 15
"""Threads that keep a small device busy."""


@dataclass(frozen=True, slots=True)
class ThreadIsa(PortableIsa, Threads):
    """A thread as an instruction set: `lanes` elements one by one."""


@dataclass(frozen=True, slots=True)
class Vector:
    """Elements of one thread."""

    lanes: int

    @property
    def name(self) -> str:
        return f"vector-{self.lanes}"


VECTORS = (Vector(16), Vector(4))


_known: dict[tuple[Hashable, ...], tuple[Vector, ...]] = {}
"""By geometry and alignment: plans of one network ask for the same kernels again and again."""


def legal_vectors(kernel: Kernel, program: Program) -> list[Vector]:
    """Those that the kernel's layouts allow, first the one that keeps a device busy."""
    ctx, values = Context(kernel, program, ThreadIsa()), (*kernel.inputs, kernel.name)
    key = (work_of(kernel, program, "").key, *(alignment(ctx, value) for value in values))
    if key not in _known:
        _known[key] = tuple(vector for vector in VECTORS if _emitted(kernel, program, vector) is not None)
    busy = program.buffers[kernel.name].layout.elements >= _BUSY * VECTORS[0].lanes
    return list(_known[key] if busy else reversed(_known[key]))


def emit(kernel: Kernel, program: Program, vector: Vector) -> Emitted:
    """The kernel with a vector that is one of `legal_vectors`."""
    emitted = _emitted(kernel, program, vector)
    assert emitted is not None
    return emitted


def _emitted(kernel: Kernel, program: Program, vector: Vector) -> Emitted | None:
    ctx = Context(kernel, program, ThreadIsa(lanes=vector.lanes))
    layouts = [ctx.layout(value) for value in (*kernel.inputs, kernel.name)]
    whole = all(layout.pixel % vector.lanes == 0 for layout in layouts)
    if not whole or not generic.has_vectors(ctx):
        return None
    emitted = generic.emit(ctx)
    alignments = [
        _ALIGNED if isinstance(a, Constant) else alignment(ctx, a.name) if isinstance(a, Value) else 0
        for a in emitted.arguments
    ]
    scalarizer = Scalarizer(alignments)
    try:
        made = scalarizer.function(emitted.func)
    except Refused:
        return None
    return Emitted(made, emitted.arguments) if scalarizer.accesses else None
