"""From a serial kernel to one whose loops are shared among the threads of a grid.

Kernels write every output element once and read none of them, so the iterations of every outermost loop nest
are independent: a nest is flattened and its iterations are dealt out to the threads, neighbours in memory to
neighbouring threads.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx as tir

from targets._tvm.builder import const

THREADS = 128
"""Of a block."""
MOST_BLOCKS = 1 << 13
"""Beyond these, threads take several turns."""

THREAD = "q_thread"
"""The variable a spread kernel reads: the number of this thread in the grid."""
STRIDE = "q_threads"
"""The variable with the number of threads in the grid."""


def spread(func: Any) -> tuple[Any, int]:
    """The kernel with its outermost loops spread over threads, and the blocks worth launching.

    The result has two free scalar variables, THREAD and STRIDE (int32), which whoever prints it defines.
    """
    thread, stride = tir.Var(THREAD, "int32"), tir.Var(STRIDE, "int32")
    statements: list[Any] = []
    most = 1
    for stmt in func.body.seq:
        for one in stmt.seq if isinstance(stmt, tir.SeqStmt) else [stmt]:
            if isinstance(one, tir.For):
                shared, iterations = _shared(one, thread, stride)
                statements.append(shared)
                most = max(most, iterations)
            elif isinstance(one, tir.BufferStore | tir.Evaluate):
                statements.append(tir.IfThenElse(thread < 1, one, None))
            else:
                statements.append(one)
    made = tir.PrimFunc(func.params, tir.SeqStmt(statements), ret_type=func.ret_type).with_attrs(dict(func.attrs))
    return made, min(MOST_BLOCKS, -(-most // THREADS))


def _shared(nest: Any, thread: Any, stride: Any) -> tuple[Any, int]:
    """A loop nest dealt out to threads, and its iterations."""
    chain = [nest]
    while isinstance(chain[-1].body, tir.For):
        chain.append(chain[-1].body)
    extents = [int(loop.extent) for loop in chain]
    total = 1
    for extent in extents:
        total *= extent
    turn = tir.Var("q_turn", "int32")
    index = tir.Var("q_index", "int32")
    body: list[Any] = [tir.Bind(index, thread + turn * stride)]
    inner: list[Any] = []
    rest: Any = index
    for position, (loop, extent) in enumerate(zip(reversed(chain), reversed(extents), strict=True)):
        last = position == len(chain) - 1
        inner.append(tir.Bind(loop.loop_var, rest if last else tir.floormod(rest, const(extent))))
        if not last:
            quotient = tir.Var(f"q_rest{position}", "int32")
            inner.append(tir.Bind(quotient, tir.floordiv(rest, const(extent))))
            rest = quotient
    inside = chain[-1].body
    inner += list(inside.seq) if isinstance(inside, tir.SeqStmt) else [inside]
    body.append(tir.IfThenElse(index < const(total), tir.SeqStmt(inner), None))
    turns = tir.floordiv(const(total - 1) + stride, stride)
    return tir.For(turn, const(0), turns, tir.ForKind.SERIAL, tir.SeqStmt(body)), total
