"""Layers, arithmetic and pooling on source values: the part of a capture that knows what operators mean."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from qcompile.capture.emit import Emitter, Unsupported, Value, layout, normal_axis, single
from qcompile.exec import unary
from qcompile.ir import Array
from qcompile.ir.ops import AttrValue

Operand = Value | Array


def conv(
    e: Emitter,
    x: Value,
    w: Array,
    b: Array | None,
    *,
    stride: Sequence[int],
    pad: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Value:
    """A convolution; `pad` is (before…, after…) of each spatial axis.  One-dimensional ones become 1×k."""
    consts = {"w": w} if b is None else {"w": w, "b": b}
    if w.ndim == 3 and len(x.shape) == 3:
        image = e.source(x.name, (*x.shape[:2], 1, x.shape[2]))
        y = conv(
            e, image, w[:, :, None], b, stride=(1, *stride), pad=(0, pad[0], 0, pad[1]),
            dilation=(1, *dilation), groups=groups,
        )  # fmt: skip
        return e.source(y.name, (*y.shape[:2], y.shape[3]))
    if w.ndim != 4 or len(x.shape) != 4:
        raise Unsupported(f"a convolution of {x.shape} with weights {w.shape}; two spatial dimensions are supported")
    if any(p < 0 for p in pad):
        raise Unsupported("negative padding")
    attrs: dict[str, AttrValue] = {"stride": tuple(stride), "pad": tuple(pad)}
    attrs |= {"dilation": tuple(dilation), "groups": groups}
    value = e.node("conv2d", [e.batched(x)], consts, attrs)
    return e.source(value, (1, *e.builder.type_of(value).sample))


def linear(e: Emitter, x: Value, w: Array, b: Array | None) -> Value:
    """x · wᵀ + b over the last axis; w is (out, in)."""
    if not x.shape or w.ndim != 2 or x.shape[-1] != w.shape[1]:
        raise Unsupported(f"a product of {x.shape} with weights {w.shape}")
    name = x.name if len(layout(x.shape)) > 1 else e.full(x)
    consts = {"w": w} if b is None else {"w": w, "b": b}
    return e.source(e.node("linear", [name], consts), (*x.shape[:-1], w.shape[0]))


def batch_norm(e: Emitter, x: Value, scale: Array, bias: Array, mean: Array, var: Array, eps: float) -> Value:
    consts = {"scale": scale, "bias": bias, "mean": mean, "var": var}
    if len(x.shape) < 2 or any(c.shape != (x.shape[1],) for c in consts.values()):
        raise Unsupported(f"parameters do not fit the channels of {x.shape}")
    if (np.asarray(var, dtype=np.float64) + eps <= 0).any():
        raise Unsupported("a variance is negative")
    return Value(e.node("batch_norm", [e.batched(x)], consts, {"eps": single(eps)}), x.shape)


def arithmetic(e: Emitter, op: str, a: Operand, b: Operand) -> Value:
    """add, sub, mul or div of two values or of a value and a constant, with NumPy broadcasting."""
    if isinstance(a, Value) and isinstance(b, Value):
        if op == "div":
            return _binary(e, "mul", a, function(e, b, unary.call("div", 1.0, "x")))
        return _binary(e, op, a, b)
    if isinstance(a, Value):
        c = np.asarray(b, dtype=np.float64)
        if op == "div":
            if (c == 0).any():
                raise Unsupported("a division by the constant 0")
            return affine(e, a, 1 / c, 0)
        return affine(e, a, c, 0) if op == "mul" else affine(e, a, 1, c if op == "add" else -c)
    if not isinstance(b, Value):
        raise Unsupported("no operand is computed from the input")
    c = np.asarray(a, dtype=np.float64)
    match op:
        case "mul":
            return affine(e, b, c, 0)
        case "add":
            return affine(e, b, 1, c)
        case "sub":
            return affine(e, b, -1, c)
    return affine(e, function(e, b, unary.call("div", 1.0, "x")), c, 0)


def _binary(e: Emitter, op: str, a: Value, b: Value) -> Value:
    try:
        shape = np.broadcast_shapes(a.shape, b.shape)
    except ValueError:
        raise Unsupported(f"shapes {a.shape} and {b.shape} do not broadcast") from None
    a, b = (Value(v.name, (1,) * (len(shape) - len(v.shape)) + v.shape) for v in (a, b))
    # Leading ones are not part of the layout, so this changes what the shapes say and not the graph values …
    a, b = e.source(a.name, a.shape), e.source(b.name, b.shape)
    batched = bool(shape) and a.shape[0] == b.shape[0] == 1
    names = [a.name, b.name] if batched else [e.full(a), e.full(b)]
    return e.source(e.node(op, names), shape)


def affine(e: Emitter, x: Value, scale: Array | float, shift: Array | float) -> Value:
    """scale · x + shift; the constants broadcast to x and must not enlarge it."""
    scale, shift = np.asarray(scale, dtype=np.float64), np.asarray(shift, dtype=np.float64)
    rank = max(scale.ndim, shift.ndim, len(x.shape))
    if rank > len(x.shape) and x.shape[:1] == (1,):
        raise Unsupported(f"a constant of rank {rank} moves the batch of {x.shape} away from dimension 0")
    x = e.source(x.name, (1,) * (rank - len(x.shape)) + x.shape)
    try:
        fits = np.broadcast_shapes(scale.shape, shift.shape, x.shape) == x.shape
    except ValueError:
        fits = False
    if not fits:
        raise Unsupported(f"a constant of shape {max(scale.shape, shift.shape, key=len)} enlarges {x.shape}")
    whole = len(layout(x.shape)) - 1 == rank
    parts = {}
    for role, c in (("scale", scale), ("shift", shift)):
        padded = c.reshape((1,) * (rank - c.ndim) + c.shape)
        parts[role] = padded if whole else padded[0]
    return Value(e.node("affine", [x.name], parts), x.shape)


def function(e: Emitter, x: Value, expr: str) -> Value:
    """An elementwise function given as an expression."""
    return Value(e.node("unary", [x.name], attrs={"expr": expr}), x.shape)


def clip(e: Emitter, x: Value, low: float, high: float) -> Value:
    if math.isnan(low) or math.isnan(high) or low > high:
        raise Unsupported(f"it clips to [{low}, {high}]")
    if low == -math.inf and high == math.inf:
        return x
    return Value(e.node("clip", [x.name], attrs={"lo": single(low), "hi": single(high)}), x.shape)


def prelu(e: Emitter, x: Value, slope: Array | float) -> Value:
    """x where positive, slope · x where negative; the slope broadcasts to x."""
    s = np.asarray(slope, dtype=np.float64)
    if s.ndim > len(x.shape) or np.broadcast_shapes(s.shape, x.shape) != x.shape:
        raise Unsupported(f"a slope of shape {s.shape} does not fit {x.shape}")
    padded = s.reshape((1,) * (len(x.shape) - s.ndim) + s.shape)
    whole = len(layout(x.shape)) - 1 == len(x.shape)
    return Value(e.node("prelu", [x.name], {"slope": padded if whole else padded[0]}), x.shape)


def softmax(e: Emitter, x: Value, axis: int) -> Value:
    axis = normal_axis(axis, len(x.shape))
    if axis == 0 and x.shape[0] == 1:
        raise Unsupported("it works across the samples of a batch")
    name, shift = e.open_axes(x, [axis])
    return e.source(e.node("softmax", [name], attrs={"axis": axis + shift}), x.shape)


def reduce_mean(e: Emitter, x: Value, axes: Sequence[int], keepdims: bool) -> Value:
    axes = sorted({normal_axis(a, len(x.shape)) for a in axes})
    if not axes:
        return x
    if axes[0] == 0 and x.shape[0] == 1:
        raise Unsupported("it works across the samples of a batch")
    shape = [1 if i in axes else d for i, d in enumerate(x.shape) if keepdims or i not in axes]
    name, shift = e.open_axes(x, axes)
    attrs: dict[str, AttrValue] = {"axes": tuple(a + shift for a in axes), "keepdims": int(keepdims)}
    return e.source(e.node("reduce_mean", [name], attrs=attrs), shape)


def reduce_sum(e: Emitter, x: Value, axes: Sequence[int], keepdims: bool) -> Value:
    count = math.prod(x.shape[normal_axis(a, len(x.shape))] for a in set(axes))
    return affine(e, reduce_mean(e, x, axes, keepdims), count, 0)


def _after(size: int, kernel: int, stride: int, before: int, after: int, dilation: int, ceil: bool) -> int:
    """Padding behind one axis so that the floor rule gives what ceil mode asks for."""
    if not ceil:
        return after
    span = dilation * (kernel - 1) + 1
    count = -(-(size + before + after - span) // stride) + 1
    # A window must begin inside of the image or of the padding before it.
    if (count - 1) * stride >= size + before:
        count -= 1
    return max(after, (count - 1) * stride + span - size - before)


def _image(e: Emitter, x: Value, kernel: Sequence[int]) -> tuple[Value, bool]:
    """The value as an image; one-dimensional signals become images of one row."""
    if len(x.shape) == 3 and len(kernel) == 1:
        return e.source(x.name, (*x.shape[:2], 1, x.shape[2])), True
    if len(x.shape) != 4 or len(kernel) != 2:
        raise Unsupported(f"pooling of {x.shape}; two spatial dimensions are supported")
    return x, False


def max_pool(
    e: Emitter,
    x: Value,
    kernel: Sequence[int],
    stride: Sequence[int],
    pad: Sequence[int],
    dilation: Sequence[int],
    ceil: bool,
) -> Value:
    """Maximum over windows; `pad` is (before…, after…) and counts as −∞."""
    image, flat = _image(e, x, kernel)
    if flat:
        kernel, stride, dilation, pad = (1, *kernel), (1, *stride), (1, *dilation), (0, pad[0], 0, pad[1])
    ends = [_after(image.shape[2 + i], kernel[i], stride[i], pad[i], pad[2 + i], dilation[i], ceil) for i in range(2)]
    attrs: dict[str, AttrValue] = {"kernel": tuple(kernel), "stride": tuple(stride)}
    attrs |= {"pad": (pad[0], pad[1], *ends), "dilation": tuple(dilation)}
    value = e.node("max_pool", [e.batched(image)], attrs=attrs)
    y = e.source(value, (1, *e.builder.type_of(value).sample))
    return e.source(y.name, (*y.shape[:2], y.shape[3])) if flat else y


def avg_pool(
    e: Emitter,
    x: Value,
    kernel: Sequence[int],
    stride: Sequence[int],
    pad: Sequence[int],
    count_pad: bool,
    ceil: bool,
) -> Value:
    """Mean over windows; `pad` is (before…, after…), counted in the divisor or not."""
    image, flat = _image(e, x, kernel)
    if flat:
        kernel, stride, pad = (1, *kernel), (1, *stride), (0, pad[0], 0, pad[1])
    ends = [_after(image.shape[2 + i], kernel[i], stride[i], pad[i], pad[2 + i], 1, ceil) for i in range(2)]
    if tuple(ends) != tuple(pad[2:]) and count_pad and any(pad):
        raise Unsupported("ceil_mode together with padding that counts in the mean")
    count_pad = count_pad and tuple(ends) == tuple(pad[2:])
    whole = (pad[0], pad[1], *ends)
    attrs: dict[str, AttrValue] = {"kernel": tuple(kernel), "stride": tuple(stride), "pad": whole}
    attrs["count_pad"] = int(count_pad or not any(whole))
    value = e.node("avg_pool", [e.batched(image)], attrs=attrs)
    y = e.source(value, (1, *e.builder.type_of(value).sample))
    return e.source(y.name, (*y.shape[:2], y.shape[3])) if flat else y
