"""Operators that select or move elements: the same NumPy code on floats and on integers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qcompile.ir import Array, Attrs, Node


def windows(x: Array, kernel: Sequence[int], attrs: Attrs, fill: float) -> Array:
    """Sliding windows of a padded NCHW array, as a view of shape (N, C, OH, OW, KH, KW)."""
    top, left, bottom, right = attrs.ints("pad")
    (sh, sw) = attrs.ints("stride")
    (dh, dw) = attrs.ints("dilation") if "dilation" in attrs else (1, 1)
    if top or left or bottom or right:
        x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)
    span = ((kernel[0] - 1) * dh + 1, (kernel[1] - 1) * dw + 1)
    view = np.lib.stride_tricks.sliding_window_view(x, span, axis=(2, 3))
    return view[:, :, ::sh, ::sw, ::dh, ::dw]


def max_pool(x: Array, attrs: Attrs, lowest: float) -> Array:
    """Maximum over windows; `lowest` is what padding counts as."""
    view = windows(x, attrs.ints("kernel"), attrs, lowest)
    result = view[..., 0, 0].copy()
    for i in range(view.shape[4]):
        for j in range(view.shape[5]):
            np.maximum(result, view[..., i, j], out=result)
    return result


def move(node: Node, inputs: Sequence[Array]) -> Array:
    """Evaluate one of `qcompile.ir.MOVEMENT` on arrays with a batch dimension."""
    x, attrs = inputs[0], node.attrs
    match node.op:
        case "concat":
            return np.concatenate(inputs, axis=attrs.int("axis"))
        case "reshape":
            return x.reshape(len(x), *attrs.ints("shape")[1:])
        case "transpose":
            return x.transpose(attrs.ints("perm"))
        case "slice":
            parts = zip(attrs.ints("starts"), attrs.ints("ends"), attrs.ints("steps"), strict=True)
            return x[(slice(None), *(slice(a, b, s) for a, b, s in parts))]
        case "pad":
            pads = attrs.ints("pads")
            half = len(pads) // 2
            width = [(0, 0), *((pads[i], pads[half + i]) for i in range(half))]
            return np.pad(x, width, constant_values=x.dtype.type(attrs.float("value")))
        case "resize":
            return x[:, :, np.array(attrs.ints("rows"))][:, :, :, np.array(attrs.ints("cols"))]
    raise KeyError(node.op)
