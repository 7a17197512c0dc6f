"""ONNX operators that move, select and reshape."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from qcompile.capture.emit import Unsupported, Value, normal_axis
from qcompile.capture.onnx_node import OnnxNode, handles


@handles("Identity")
def _identity(n: OnnxNode) -> Value:
    return n.value()


@handles("Dropout")
def _dropout(n: OnnxNode) -> Value:
    training = n.const_or(2)
    if training is not None and bool(np.asarray(training).any()):
        raise Unsupported("it is in training mode: export the model in evaluation mode")
    return n.value()


@handles("Cast", "CastLike")
def _cast(n: OnnxNode) -> Value:
    if n.proto.op_type == "CastLike":
        like = n.operand(1)
        target = onnx.TensorProto.FLOAT if isinstance(like, Value) or like.dtype == np.float32 else 0
    else:
        target = n.attr("to")
    if target != onnx.TensorProto.FLOAT:
        raise Unsupported("a cast to another type than float32")
    return n.value()


@handles("Concat")
def _concat(n: OnnxNode) -> Value:
    values = []
    for i in range(len(n.inputs)):
        operand = n.operand(i)
        if isinstance(operand, Value):
            values.append(operand)
        elif operand.size:
            raise Unsupported("it joins a constant to computed values")
    return n.emit.concat(values, int(n.attr("axis")))


@handles("Flatten")
def _flatten(n: OnnxNode) -> Value:
    x = n.value()
    axis = int(n.attr("axis", 1))
    axis = axis + len(x.shape) if axis < 0 else axis
    if not 0 <= axis <= len(x.shape):
        raise Unsupported(f"axis {axis} lies outside of {x.shape}")
    return n.emit.reshape(x, (math.prod(x.shape[:axis]), math.prod(x.shape[axis:])))


@handles("Reshape")
def _reshape(n: OnnxNode) -> Value:
    x, shape = n.value(), n.ints(1)
    if not n.attr("allowzero", 0):
        shape = [x.shape[i] if s == 0 and i < len(x.shape) else s for i, s in enumerate(shape)]
    if shape.count(-1) > 1 or any(s < -1 or s == 0 for s in shape):
        raise Unsupported(f"the shape {shape}")
    if -1 in shape:
        rest = math.prod(s for s in shape if s != -1)
        if math.prod(x.shape) % rest:
            raise Unsupported(f"cannot reshape {x.shape} to {shape}")
        shape[shape.index(-1)] = math.prod(x.shape) // rest
    return n.emit.reshape(x, shape)


def _axes(n: OnnxNode) -> list[int] | None:
    """Axes, an input since opset 13."""
    if n.has(1):
        return n.ints(1)
    return list(n.attr("axes")) if n.attr("axes") is not None else None


@handles("Squeeze")
def _squeeze(n: OnnxNode) -> Value:
    x, axes = n.value(), _axes(n)
    rank = len(x.shape)
    gone = {normal_axis(a, rank) for a in axes} if axes is not None else {i for i in range(rank) if x.shape[i] == 1}
    if any(x.shape[a] != 1 for a in gone):
        raise Unsupported(f"axes {sorted(gone)} of {x.shape} are not all of size 1")
    return n.emit.reshape(x, [d for i, d in enumerate(x.shape) if i not in gone])


@handles("Unsqueeze")
def _unsqueeze(n: OnnxNode) -> Value:
    x, axes = n.value(), _axes(n) or []
    rank = len(x.shape) + len(axes)
    new = {normal_axis(a, rank) for a in axes}
    rest = iter(x.shape)
    return n.emit.reshape(x, [1 if i in new else next(rest) for i in range(rank)])


@handles("Transpose")
def _transpose(n: OnnxNode) -> Value:
    x = n.value()
    return n.emit.transpose(x, list(n.attr("perm", range(len(x.shape))[::-1])))


@handles("Slice")
def _slice(n: OnnxNode) -> Value:
    x = n.value()
    starts, ends = n.ints(1), n.ints(2)
    axes = n.ints(3) if n.has(3) else list(range(len(starts)))
    steps = n.ints(4) if n.has(4) else [1] * len(starts)
    parts = {}
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if step < 1:
            raise Unsupported(f"the step {step} reverses the order")
        axis = normal_axis(axis, len(x.shape))
        low, high, _ = slice(start, end, step).indices(x.shape[axis])
        parts[axis] = (low, high, step)
    return n.emit.slice(x, parts)


@handles("Split")
def _split(n: OnnxNode) -> list[Value]:
    x, count = n.value(), len(n.proto.output)
    axis = normal_axis(int(n.attr("axis", 0)), len(x.shape))
    size = x.shape[axis]
    if n.has(1):
        sizes = n.ints(1)
    else:
        # Equal parts, the last one smaller where they do not come out even.
        part = -(-size // count)
        sizes = [*([part] * (count - 1)), size - part * (count - 1)]
    if len(sizes) != count or sum(sizes) != size or min(sizes) < 1:
        raise Unsupported(f"parts {sizes} of a dimension of {size}")
    ends = np.cumsum(sizes).tolist()
    return [n.emit.slice(x, {axis: (end - part, end, 1)}) for part, end in zip(sizes, ends, strict=True)]


@handles("Gather")
def _gather(n: OnnxNode) -> Value:
    return n.emit.gather(n.value(), n.const(1), int(n.attr("axis", 0)))


@handles("Expand")
def _expand(n: OnnxNode) -> Value:
    return n.emit.expand(n.value(), n.ints(1))


@handles("Pad")
def _pad(n: OnnxNode) -> Value:
    x = n.value()
    pads = n.ints(1)
    axes = [normal_axis(a, len(x.shape)) for a in n.ints(3)] if n.has(3) else list(range(len(x.shape)))
    if len(pads) != 2 * len(axes):
        raise Unsupported(f"{len(pads)} amounts for {len(axes)} axes")
    if any(pads) and n.attr("mode", "constant") != "constant":
        raise Unsupported(f"the mode {n.attr('mode')!r}; only padding with a constant is supported")
    before, after = [0] * len(x.shape), [0] * len(x.shape)
    for i, axis in enumerate(axes):
        before[axis], after[axis] = pads[i], pads[len(axes) + i]
    return n.emit.pad(x, before, after, n.scalar(2, 0.0))


@handles("Resize", "Upsample")
def _resize(n: OnnxNode) -> Value:
    x = n.value()
    rank = len(x.shape)
    scales_at, sizes_at = (1, 9) if n.proto.op_type == "Upsample" else (2, 3)
    axes = [normal_axis(a, rank) for a in n.attr("axes", range(rank))]
    scales: list[float] = [1.0] * rank
    out = list(x.shape)
    given = n.const_or(scales_at)
    if given is not None and given.size:
        if n.attr("antialias", 0):
            raise Unsupported("antialias")
        for axis, scale in zip(axes, np.asarray(given).tolist(), strict=True):
            scales[axis] = scale
            out[axis] = math.floor(x.shape[axis] * scale)
    elif n.has(sizes_at):
        if n.attr("keep_aspect_ratio_policy", "stretch") != "stretch":
            raise Unsupported("keep_aspect_ratio_policy")
        for axis, size in zip(axes, n.ints(sizes_at), strict=True):
            out[axis], scales[axis] = size, size / x.shape[axis]
    else:
        raise Unsupported("neither scales nor sizes are given")
    if out == list(x.shape):
        return x
    if rank != 4 or out[:2] != list(x.shape[:2]) or min(out) < 1:
        raise Unsupported(f"it resizes {x.shape} to {out}; only rows and columns of an image can be resized")
    return n.emit.select(x, *(_indices(n, x.shape[a], out[a], scales[a]) for a in (2, 3)))


def _indices(n: OnnxNode, size: int, out: int, scale: float) -> Sequence[int]:
    """The source index of each output row or column, by the formulas of the ONNX specification."""
    if size == 1:
        return [0] * out
    if size == out and scale == 1.0:
        return range(size)
    if n.attr("mode", "nearest") != "nearest":
        raise Unsupported(f"the mode {n.attr('mode')!r}; only nearest is supported")
    i: NDArray[np.float64] = np.arange(out, dtype=np.float64)
    upsample = n.proto.op_type == "Upsample"
    match "asymmetric" if upsample else n.attr("coordinate_transformation_mode", "half_pixel"):
        case "asymmetric":
            at = i / scale
        case "half_pixel":
            at = (i + 0.5) / scale - 0.5
        case "pytorch_half_pixel":
            at = (i + 0.5) / scale - 0.5 if out > 1 else i * 0.0
        case "align_corners":
            at = i * (size - 1) / (out - 1) if out > 1 else i * 0.0
        case "half_pixel_symmetric":
            at = size / 2 * (1 - out / (scale * size)) + (i + 0.5) / scale - 0.5
        case mode:
            raise Unsupported(f"the coordinate mode {mode!r}")
    match "floor" if upsample else n.attr("nearest_mode", "round_prefer_floor"):
        case "floor":
            index = np.floor(at)
        case "ceil":
            index = np.ceil(at)
        case "round_prefer_floor":
            index = np.ceil(at - 0.5)
        case "round_prefer_ceil":
            index = np.floor(at + 0.5)
        case mode:
            raise Unsupported(f"the nearest mode {mode!r}")
    return [int(v) for v in index.clip(0, size - 1)]


@handles("DepthToSpace", "SpaceToDepth")
def _shuffle(n: OnnxNode) -> Value:
    """Blocks of pixels to channels and back: reshape, transpose, reshape."""
    x, block = n.value(), int(n.attr("blocksize", 0))
    if len(x.shape) != 4 or block < 1:
        raise Unsupported(f"blocks of {block} in {x.shape}")
    b, c, h, w = x.shape
    if n.proto.op_type == "SpaceToDepth":
        y = n.emit.reshape(x, (b, c, h // block, block, w // block, block))
        return n.emit.reshape(n.emit.transpose(y, (0, 3, 5, 1, 2, 4)), (b, c * block**2, h // block, w // block))
    deep = c // block**2
    if n.attr("mode", "DCR") == "DCR":
        y = n.emit.transpose(n.emit.reshape(x, (b, block, block, deep, h, w)), (0, 3, 4, 1, 5, 2))
    else:
        y = n.emit.transpose(n.emit.reshape(x, (b, deep, block, block, h, w)), (0, 1, 4, 2, 5, 3))
    return n.emit.reshape(y, (b, deep, h * block, w * block))
