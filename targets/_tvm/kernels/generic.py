"""The generic implementation of every kernel: one output element, or one vector of channels, at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from qcompile.ir import MOVEMENT, storage
from targets._tvm.builder import Expr
from targets._tvm.context import Context, Emitted
from targets._tvm.isa import Threads, widest
from targets._tvm.kernels import boundary, dense, elementwise, movement, window
from targets._tvm.kernels.epilogue import Epilogue
from targets._tvm.kernels.pointwise import At, Region, emit_region, fill_halo, same_lanes

_SCALAR_OPS = frozenset({"table", "linear"})


def emit(ctx: Context) -> Emitted:
    """Generate the kernel of `ctx`."""
    node = ctx.anchor
    if boundary.is_legal(ctx):
        boundary.emit(ctx)
    elif node.op in MOVEMENT:
        for region in movement.regions(ctx, node):
            emit_region(ctx, region)
    else:
        emit_region(ctx, _computed(ctx))
    fill_halo(ctx)
    return ctx.finish()


def _computed(ctx: Context) -> Region:
    node = ctx.anchor
    layout = ctx.out_layout
    alone = node.op == "requant"
    epilogue = Epilogue(ctx, node if alone else ctx.kernel.epilogue, None if alone else node.name)
    compute, work = (None, 4) if alone else _anchor(ctx)

    def at(coords: Sequence[Expr], lanes: int) -> Expr:
        acc = None if compute is None else ctx.b.let(compute(coords, lanes))
        if not alone and ctx.kernel.epilogue is None:
            return acc
        return epilogue.value(acc, coords, lanes)

    operations = math.prod(layout.shape) * work
    return Region((0,) * len(layout.shape), layout.shape, at, _lanes(ctx), operations)


def _anchor(ctx: Context) -> tuple[At, int]:
    """How the anchor's element is computed, and its multiply-adds."""
    node = ctx.anchor
    match node.op:
        case "conv2d":
            taps = math.prod(ctx.const(node, "w").shape[1:])
            return (window.depthwise if window.is_depthwise(ctx, node) else dense.conv2d)(ctx, node), taps
        case "linear":
            return dense.linear(ctx, node), ctx.const(node, "w").shape[1]
        case "sum_pool":
            return window.sum_pool(ctx, node), math.prod(node.attrs.ints("kernel"))
        case "max_pool":
            return window.max_pool(ctx, node), math.prod(node.attrs.ints("kernel")) // 4
        case "reduce_sum":
            return elementwise.reduce_sum(ctx, node), ctx.layout(node.inputs[0]).elements // ctx.out_layout.elements
        case "mul":
            return elementwise.multiply(ctx, node), 4
        case "table":
            return elementwise.table(ctx, node), 4
    raise KeyError(node.op)


def has_vectors(ctx: Context) -> bool:
    """Whether elements are computed several at a time."""
    node = ctx.anchor
    if boundary.is_legal(ctx):
        return True
    if node.op in MOVEMENT:
        return any(region.lanes > 1 for region in movement.regions(Context(ctx.kernel, ctx.program, ctx.isa), node))
    return _lanes(ctx) > 1


def _lanes(ctx: Context) -> int:
    """Vector width: 1 unless every operand is consecutive along the output's lane axis."""
    node, layout = ctx.anchor, ctx.out_layout
    scalar = node.op in _SCALAR_OPS and not (node.op == "table" and isinstance(ctx.isa, Threads))
    if scalar or not layout.shape or ctx.isa.lanes == 1:
        return 1
    if node.op == "conv2d" and not (window.is_depthwise(ctx, node) and layout.channels_last):
        return 1
    if node.op == "reduce_sum":
        source = ctx.layout(node.inputs[0])
        keeps = source.channels_last and 1 not in node.attrs.ints("axes")
        if not (keeps and layout.channels_last):
            return 1
    if not all(same_lanes(ctx.layout(v), layout) for v in ctx.kernel.inputs):
        return 1
    if node.op == "max_pool" and storage(layout.dtype).itemsize == 1 and layout.channels_last:
        return widest(ctx.isa, 64 if layout.pixel >= 64 else 32 if layout.pixel >= 32 else 16)
    return ctx.isa.lanes


Emitter = Callable[[Context], Emitted]
