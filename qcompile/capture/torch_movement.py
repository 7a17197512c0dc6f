"""Torch operators that move, select and reshape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import EllipsisType
from typing import Any

import numpy as np

from qcompile.capture.emit import Emitter, Unsupported, Value, normal_axis
from qcompile.capture.torch_ops import array, flat, op, value


@op("dropout", "dropout_", "feature_dropout", "dropout2d", "alpha_dropout")
def _dropout(
    e: Emitter, input: Any, p: float = 0.5, train: bool = False, training: bool = False, *_: Any, **__: Any
) -> Value:
    if train or training:
        raise Unsupported("it is in training mode: call eval() on the module")
    return value(input)


@op("contiguous", "clone", "detach", "detach_", "alias", "lift_fresh_copy", "float", "identity")
def _same(e: Emitter, input: Any, *_: Any, **__: Any) -> Value:
    return value(input)


@op("to", "_to_copy", "type_as")
def _to(e: Emitter, input: Any, *args: Any, **kwargs: Any) -> Value:
    wanted = [str(a) for a in (*args, *kwargs.values()) if str(a).startswith("torch.") and "float32" not in str(a)]
    if any(
        w.removeprefix("torch.") in ("float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool")
        for w in wanted
    ):
        raise Unsupported(f"a conversion to {wanted[0]}")
    return value(input)


@op("flatten")
def _flatten(e: Emitter, input: Any, start_dim: int = 0, end_dim: int = -1) -> Value:
    x = value(input)
    first, last = normal_axis(start_dim, len(x.shape)), normal_axis(end_dim, len(x.shape))
    return e.reshape(x, (*x.shape[:first], math.prod(x.shape[first : last + 1]), *x.shape[last + 1 :]))


@op("unflatten")
def _unflatten(e: Emitter, input: Any, dim: int, sizes: Sequence[int]) -> Value:
    x = value(input)
    axis = normal_axis(dim, len(x.shape))
    return e.reshape(x, (*x.shape[:axis], *_filled(list(sizes), x.shape[axis]), *x.shape[axis + 1 :]))


def _filled(shape: list[int], total: int) -> list[int]:
    """The shape with its −1 replaced."""
    if shape.count(-1) > 1 or any(s < -1 or s == 0 for s in shape):
        raise Unsupported(f"the shape {shape}")
    if -1 in shape:
        shape[shape.index(-1)] = total // math.prod(s for s in shape if s != -1)
    return shape


@op("view", "reshape", "_unsafe_view")
def _view(e: Emitter, input: Any, *size: Any, shape: Any = None) -> Value:
    x = value(input)
    return e.reshape(x, _filled(flat(size) if shape is None else list(shape), math.prod(x.shape)))


@op("squeeze")
def _squeeze(e: Emitter, input: Any, dim: Any = None) -> Value:
    x = value(input)
    dims = range(len(x.shape)) if dim is None else dim if isinstance(dim, Sequence) else [dim]
    gone = {normal_axis(d, len(x.shape)) for d in dims}
    return e.reshape(x, [s for i, s in enumerate(x.shape) if i not in gone or s != 1])


@op("unsqueeze")
def _unsqueeze(e: Emitter, input: Any, dim: int) -> Value:
    x = value(input)
    axis = normal_axis(dim, len(x.shape) + 1)
    return e.reshape(x, (*x.shape[:axis], 1, *x.shape[axis:]))


@op("permute")
def _permute(e: Emitter, input: Any, *dims: Any) -> Value:
    x = value(input)
    return e.transpose(x, [normal_axis(d, len(x.shape)) for d in flat(dims)])


@op("transpose", "swapaxes")
def _transpose(e: Emitter, input: Any, dim0: int, dim1: int) -> Value:
    x = value(input)
    a, b = normal_axis(dim0, len(x.shape)), normal_axis(dim1, len(x.shape))
    perm = list(range(len(x.shape)))
    perm[a], perm[b] = perm[b], perm[a]
    return e.transpose(x, perm)


@op("slice")
def _slice(e: Emitter, input: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Value:
    x = value(input)
    axis = normal_axis(dim, len(x.shape))
    low, high, stride = slice(start, end, step).indices(x.shape[axis])
    return e.slice(x, {axis: (low, high, stride)})


@op("narrow")
def _narrow(e: Emitter, input: Any, dim: int, start: int, length: int) -> Any:
    return _slice(e, input, dim, start, start + length)


@op("select")
def _select(e: Emitter, input: Any, dim: int, index: int) -> Value:
    return e.gather(value(input), np.asarray(index), dim)


@op("index_select")
def _index_select(e: Emitter, input: Any, dim: int, index: Any) -> Value:
    return e.gather(value(input), array(index, "index"), dim)


@op("getitem")
def _getitem(e: Emitter, input: Any, index: Any) -> Any:
    if not isinstance(input, Value):
        return input[index]
    parts = list(index) if isinstance(index, tuple) else [index]
    if any(isinstance(p, EllipsisType) for p in parts):
        at = next(i for i, p in enumerate(parts) if isinstance(p, EllipsisType))
        used = sum(p is not None for p in parts) - 1
        parts[at : at + 1] = [slice(None)] * (len(input.shape) - used)
    x, axis = input, 0
    for part in parts:
        if part is None:
            x, axis = _unsqueeze(e, x, axis), axis + 1
        elif isinstance(part, slice):
            x, axis = _slice(e, x, axis, part.start, part.stop, part.step or 1), axis + 1
        elif isinstance(part, int):
            x = _select(e, x, axis, part)
        else:
            raise Unsupported("an index that is neither a number nor a slice")
    return x


def _parts(e: Emitter, x: Value, sizes: Sequence[int], axis: int) -> list[Value]:
    ends = np.cumsum(sizes).tolist()
    return [e.slice(x, {axis: (end - size, end, 1)}) for size, end in zip(sizes, ends, strict=True)]


@op("split", "split_with_sizes")
def _split(e: Emitter, input: Any, split_size: Any = None, dim: int = 0, split_size_or_sections: Any = None) -> Any:
    x = value(input)
    axis = normal_axis(dim, len(x.shape))
    part = split_size if split_size is not None else split_size_or_sections
    total = x.shape[axis]
    if not isinstance(part, Sequence):
        part = [min(part, total - start) for start in range(0, total, part)]
    return _parts(e, x, part, axis)


@op("chunk")
def _chunk(e: Emitter, input: Any, chunks: int, dim: int = 0) -> Any:
    return _split(e, input, -(-value(input).shape[dim] // chunks), dim)


@op("unbind")
def _unbind(e: Emitter, input: Any, dim: int = 0) -> Any:
    return [_select(e, input, dim, i) for i in range(value(input).shape[dim])]


@op("cat", "concat", "concatenate")
def _cat(e: Emitter, tensors: Sequence[Any], dim: int = 0) -> Value:
    if not all(isinstance(t, Value) for t in tensors):
        raise Unsupported("it joins a constant to computed values")
    return e.concat(list(tensors), dim)


@op("stack")
def _stack(e: Emitter, tensors: Sequence[Any], dim: int = 0) -> Value:
    return _cat(e, [_unsqueeze(e, t, dim) for t in tensors], dim)


@op("pad", "constant_pad_nd")
def _pad(
    e: Emitter,
    input: Any,
    pad: Sequence[int],
    mode: Any = "constant",
    value_: float | None = None,
    **kwargs: Any,
) -> Value:
    x = value(input)
    fill = kwargs.get("value", value_)
    if not isinstance(mode, str):
        # ATen's constant_pad_nd(input, pad, value)
        mode, fill = "constant", mode
    if mode != "constant" and any(pad):
        raise Unsupported(f"the mode {mode!r}; only padding with a constant is supported")
    before, after = [0] * len(x.shape), [0] * len(x.shape)
    for i in range(len(pad) // 2):
        before[-1 - i], after[-1 - i] = int(pad[2 * i]), int(pad[2 * i + 1])
    return e.pad(x, before, after, float(fill or 0.0))


@op("interpolate", "upsample")
def _interpolate(
    e: Emitter,
    input: Any,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    *_: Any,
    **__: Any,
) -> Value:
    x = value(input)
    if mode not in ("nearest", "nearest-exact") and tuple(x.shape[2:]) != (1, 1):
        raise Unsupported(f"the mode {mode!r}; only nearest is supported")
    return _nearest(e, x, size, scale_factor, 0.5 if mode == "nearest-exact" else 0.0)


def _nearest(e: Emitter, x: Value, size: Any, scale: Any, offset: float) -> Value:
    spatial = x.shape[2:]
    if size is not None:
        sizes = list(size) if isinstance(size, Sequence) else [size] * len(spatial)
        scales = [out / have for out, have in zip(sizes, spatial, strict=True)]
    else:
        scales = list(scale) if isinstance(scale, Sequence) else [scale] * len(spatial)
        sizes = [math.floor(have * s) for have, s in zip(spatial, scales, strict=True)]
    picks = [
        [min(have - 1, math.floor((i + offset) / s)) for i in range(out)]
        for have, out, s in zip(spatial, sizes, scales, strict=True)
    ]
    if len(picks) != 2:
        raise Unsupported(f"only images (N, C, H, W) can be resized, not {x.shape}")
    return e.select(x, picks[0], picks[1])


@op("upsample_nearest2d")
def _upsample_nearest(e: Emitter, input: Any, output_size: Any = None, *scales: Any) -> Value:
    factors = [s for s in scales if s is not None]
    factor = factors[0] if len(factors) == 1 else factors or None
    return _nearest(e, value(input), output_size, factor if output_size is None else None, 0.0)


@op("expand")
def _expand(e: Emitter, input: Any, *size: Any, **_: Any) -> Value:
    x, wanted = value(input), flat(size)
    padded = (1,) * (len(wanted) - len(x.shape)) + x.shape
    return e.expand(x, [have if want == -1 else want for want, have in zip(wanted, padded, strict=True)])


@op("channel_shuffle", "native_channel_shuffle")
def _channel_shuffle(e: Emitter, input: Any, groups: int) -> Value:
    x = value(input)
    b, c, *rest = x.shape
    grouped = e.reshape(x, (b, groups, c // groups, *rest))
    return e.reshape(e.transpose(grouped, (0, 2, 1, *range(3, len(rest) + 3))), x.shape)


@op("pixel_shuffle")
def _pixel_shuffle(e: Emitter, input: Any, upscale_factor: int) -> Value:
    x, r = value(input), upscale_factor
    b, c, h, w = x.shape
    y = e.transpose(e.reshape(x, (b, c // r**2, r, r, h, w)), (0, 1, 4, 2, 5, 3))
    return e.reshape(y, (b, c // r**2, h * r, w * r))


@op("pixel_unshuffle")
def _pixel_unshuffle(e: Emitter, input: Any, downscale_factor: int) -> Value:
    x, r = value(input), downscale_factor
    b, c, h, w = x.shape
    y = e.transpose(e.reshape(x, (b, c, h // r, r, w // r, r)), (0, 1, 3, 5, 2, 4))
    return e.reshape(y, (b, c * r**2, h // r, w // r))


@op("size", "sym_size")
def _size(e: Emitter, input: Any, dim: int | None = None) -> Any:
    return tuple(value(input).shape) if dim is None else value(input).shape[dim]


@op("getattr")
def _getattr(e: Emitter, input: Any, name: str) -> Any:
    x = value(input)
    known = {"shape": tuple(x.shape), "ndim": len(x.shape), "is_quantized": False}
    if name not in known:
        raise Unsupported(f"the attribute {name!r}")
    return known[name]


@op("dim")
def _dim(e: Emitter, input: Any) -> int:
    return len(value(input).shape)
