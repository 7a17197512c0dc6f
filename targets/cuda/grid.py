"""From a serial kernel to one whose loops are shared among the threads of a grid.

Kernels write every output element once and read none of them, so the iterations of every outermost loop nest
are independent: a nest is flattened and its iterations are dealt out to the threads, neighbours in memory to
neighbouring threads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tvm import tirx as tir

from targets._tvm.builder import const
from targets.c.printer import walk

THREADS = 128
"""Of a block."""
MOST_BLOCKS = 1 << 13
"""Beyond these, threads take several turns."""

THREAD = "q_thread"
"""The variable a spread kernel reads: the number of this thread in the grid."""


def spread(func: Any) -> tuple[Any, int]:
    """The kernel with its outermost loops spread over threads, and the blocks worth launching.

    The result has a free scalar variable, THREAD (int32), which whoever prints it defines.
    """
    thread = tir.Var(THREAD, "int32")
    given = [one for stmt in func.body.seq for one in (stmt.seq if isinstance(stmt, tir.SeqStmt) else [stmt])]
    private = [one.buffer for one in given if isinstance(one, tir.AllocBuffer)]
    # What a thread keeps between nests, as a kernel with a single result does, every thread computes.
    nests = [one for one in given if isinstance(one, tir.For) and not _stores_into(one, private)]
    most = max([math.prod(_extents(nest)) for nest in nests], default=1)
    blocks = min(MOST_BLOCKS, -(-most // THREADS))
    statements: list[Any] = []
    for one in given:
        if any(one.same_as(nest) for nest in nests):
            statements.append(_dealt(one, thread, blocks * THREADS))
        elif isinstance(one, tir.BufferStore | tir.Evaluate) and not _stores_into(one, private):
            statements.append(tir.IfThenElse(thread < 1, one, None))
        else:
            statements.append(one)
    made = tir.PrimFunc(func.params, tir.SeqStmt(statements), ret_type=func.ret_type).with_attrs(dict(func.attrs))
    return made, blocks


def _stores_into(stmt: Any, buffers: Sequence[Any]) -> bool:
    """Whether a statement changes one of the buffers, itself or through a device function (its first argument)."""
    found = False

    def visit(one: Any) -> None:
        nonlocal found
        target = None
        if isinstance(one, tir.BufferStore):
            target = one.buffer
        elif isinstance(one, tir.Evaluate) and len(getattr(one.value, "args", ())) > 1:
            target = one.value.args[1].args[0].source
        found = found or any(b.same_as(target) for b in buffers)

    walk(stmt, visit)
    return found


def _chain(nest: Any) -> list[Any]:
    """The loops of a nest that have nothing between them."""
    chain = [nest]
    while isinstance(chain[-1].body, tir.For):
        chain.append(chain[-1].body)
    return chain


def _extents(nest: Any) -> list[int]:
    return [int(loop.extent) for loop in _chain(nest)]


def _dealt(nest: Any, thread: Any, threads: int) -> Any:
    """A loop nest dealt out to threads, several iterations to each where there are more."""
    chain, extents = _chain(nest), _extents(nest)
    total = math.prod(extents)
    once = total <= threads
    turn = tir.Var("q_turn", "int32")
    index = thread if once else tir.Var("q_index", "int32")
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
    body = tir.IfThenElse(index < const(total), tir.SeqStmt(inner), None)
    if once:
        return body
    turns = tir.SeqStmt([tir.Bind(index, thread + turn * threads), body])
    return tir.For(turn, const(0), const(-(-total // threads)), tir.ForKind.SERIAL, turns)
