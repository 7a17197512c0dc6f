"""Products, sums over axes and tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

from qcompile.ir import Node, storage
from qcompile.semantics import scalar
from targets._tvm.builder import Expr, cast, const, vec
from targets._tvm.context import Context
from targets._tvm.kernels.epilogue import load_at
from targets._tvm.tir_kit import TirKit

At = Callable[[Sequence[Expr], int], Expr]


def multiply(ctx: Context, node: Node) -> At:
    """(x − z₀)·(y − z₁) as int32, with NumPy broadcasting."""
    x, y = (ctx.stored(v) for v in node.inputs)

    def at(coords: Sequence[Expr], lanes: int) -> Expr:
        kit = TirKit(lanes)
        a, b = (load_at(ctx, v, coords, lanes) for v in (x, y))
        return kit.result(scalar.multiply(kit, a, b, node.attrs.ints("zeros")), "int32")

    return at


def reduce_sum(ctx: Context, node: Node) -> At:
    """int32 sums over axes."""
    source = ctx.stored(node.inputs[0])
    axes = [a - 1 for a in node.attrs.ints("axes")]
    keep = bool(node.attrs.int("keepdims"))
    shape = source.layout.shape

    def at(coords: Sequence[Expr], lanes: int) -> Expr:
        b = ctx.b
        acc = b.local(vec("int32", lanes))
        b.store(acc, 0, const(0, vec("int32", lanes)))
        given = iter(coords if not keep else [c for i, c in enumerate(coords) if i not in axes])
        with ExitStack() as stack:
            where = [stack.enter_context(b.loop(n)) if i in axes else next(given) for i, n in enumerate(shape)]
            value = cast(vec("int32", lanes), load_at(ctx, source, where, lanes))
            b.store(acc, 0, b.load(acc, 0) + value)
        return b.let(b.load(acc, 0))

    return at


def table(ctx: Context, node: Node) -> At:
    """t[x] for every element."""
    source = ctx.stored(node.inputs[0])
    entries = ctx.constant(ctx.pack("plain", node.const("t"), dtype=storage(node.type.dtype).name))

    def at(coords: Sequence[Expr], lanes: int) -> Expr:
        index = ctx.b.load(source.buffer, source.address(coords), lanes)
        return ctx.b.gather(entries, cast(vec("int32", lanes), index))

    return at
