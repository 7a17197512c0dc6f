"""The closed table of operators: what each takes, on which level it is legal, and the type it yields.

Values are NCHW: dimension 0 is the batch, dimension 1 the channel.  Every axis attribute counts the batch.
`pad` of windowed operators is (top, left, bottom, right).  The meaning of the integer operators is in
docs/semantics.md and, executable, in `qcompile.semantics`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qcompile.errors import GraphError
from qcompile.ir.types import BATCH, Array, TensorType, bits_of

FLOAT, INT = "float", "int"
LEVELS = (FLOAT, INT)

Ints = tuple[int, ...]
AttrValue = int | float | str | tuple[int, ...]
Infer = Callable[[Sequence[TensorType], "Attrs", Mapping[str, Array]], TensorType]


class Attrs(Mapping[str, AttrValue]):
    """An immutable, hashable mapping of attribute names to plain values, sorted by name."""

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[str, AttrValue]) -> None:
        self._items = tuple(sorted(items.items()))

    def __getitem__(self, key: str) -> AttrValue:
        for name, value in self._items:
            if name == key:
                return value
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(self._items)

    def __repr__(self) -> str:
        return f"Attrs({dict(self._items)})"

    def int(self, key: str) -> int:
        value = self[key]
        if not isinstance(value, int):
            raise GraphError(f"attribute {key} must be an integer, not {value!r}")
        return value

    def float(self, key: str) -> float:
        value = self[key]
        if isinstance(value, str | tuple):
            raise GraphError(f"attribute {key} must be a number, not {value!r}")
        return value

    def ints(self, key: str) -> Ints:
        value = self[key]
        if not isinstance(value, tuple):
            raise GraphError(f"attribute {key} must be a tuple of integers, not {value!r}")
        return value

    def str(self, key: str) -> str:
        value = self[key]
        if not isinstance(value, str):
            raise GraphError(f"attribute {key} must be text, not {value!r}")
        return value


@dataclass(frozen=True, slots=True)
class OpDef:
    """One operator.

    `consts` are the roles of its constants (`w`, `b`); a role ending in `?` may be absent.  `attrs` maps each
    attribute to its default, or to `...` where it must be given.
    """

    name: str
    inputs: tuple[int, int]
    levels: frozenset[str]
    infer: Infer
    consts: tuple[str, ...] = ()
    attrs: Mapping[str, Any] = None  # type: ignore[assignment]

    @property
    def const_roles(self) -> tuple[str, ...]:
        return tuple(role.rstrip("?") for role in self.consts)

    def check(self, n_inputs: int, consts: Mapping[str, Any], attrs: Mapping[str, Any]) -> Attrs:
        """Attributes with the defaults filled in; raises GraphError where the node does not fit this operator."""
        low, high = self.inputs
        if not low <= n_inputs <= high:
            raise GraphError(f"{self.name} takes {low} to {high} inputs, not {n_inputs}")
        required = {role for role in self.consts if not role.endswith("?")}
        if not required <= set(consts) or not set(consts) <= set(self.const_roles):
            raise GraphError(f"{self.name} takes the constants {self.consts}, not {tuple(consts)}")
        known = self.attrs or {}
        if unknown := set(attrs) - set(known):
            raise GraphError(f"{self.name} has no attribute {', '.join(sorted(unknown))}")
        full = {key: attrs.get(key, default) for key, default in known.items()}
        if missing := [key for key, value in full.items() if value is ...]:
            raise GraphError(f"{self.name} needs the attribute {', '.join(missing)}")
        return Attrs(full)


def window_size(size: int, kernel: int, stride: int, before: int, after: int, dilation: int) -> int:
    """Output extent of a sliding window along one axis (floor mode)."""
    out = (size + before + after - dilation * (kernel - 1) - 1) // stride + 1
    if out < 1:
        raise GraphError(f"a window of {kernel} (dilation {dilation}) does not fit into {size} + {before} + {after}")
    return out


def _windowed(x: TensorType, channels: int, kernel: Sequence[int], attrs: Attrs, dtype: str) -> TensorType:
    if x.rank != 4:
        raise GraphError(f"a windowed operator needs (N, C, H, W), not {x}")
    top, left, bottom, right = attrs.ints("pad")
    (sh, sw) = attrs.ints("stride")
    (dh, dw) = attrs.ints("dilation") if "dilation" in attrs else (1, 1)
    h = window_size(x.shape[2], kernel[0], sh, top, bottom, dh)
    w = window_size(x.shape[3], kernel[1], sw, left, right, dw)
    return TensorType((BATCH, channels, h, w), dtype)


def accumulator(dtype: str) -> str:
    """The dtype of a sum of products: int32 on the integer level."""
    return "f32" if dtype == "f32" else "i32"


def _conv2d(xs: Sequence[TensorType], attrs: Attrs, consts: Mapping[str, Array]) -> TensorType:
    x, w = xs[0], consts["w"]
    groups = attrs.int("groups")
    if w.ndim != 4 or x.rank != 4 or w.shape[1] * groups != x.shape[1] or w.shape[0] % groups:
        raise GraphError(f"conv2d of {x} with weights {w.shape} in {groups} groups does not fit")
    if "b" in consts and consts["b"].shape != (w.shape[0],):
        raise GraphError(f"conv2d bias has shape {consts['b'].shape}, not ({w.shape[0]},)")
    return _windowed(x, w.shape[0], w.shape[2:], attrs, accumulator(x.dtype))


def _linear(xs: Sequence[TensorType], attrs: Attrs, consts: Mapping[str, Array]) -> TensorType:
    x, w = xs[0], consts["w"]
    if w.ndim != 2 or x.rank < 2 or x.shape[-1] != w.shape[1]:
        raise GraphError(f"linear of {x} with weights {w.shape} does not fit")
    return TensorType((*x.shape[:-1], w.shape[0]), accumulator(x.dtype))


def _same(xs: Sequence[TensorType], attrs: Attrs, consts: Mapping[str, Array]) -> TensorType:
    return xs[0]


def broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """NumPy broadcasting of two value shapes (both with the batch first)."""
    if len(a) != len(b):
        raise GraphError(f"shapes {a} and {b} have different ranks")
    out = []
    for x, y in zip(a, b, strict=True):
        if x != y and 1 not in (x, y):
            raise GraphError(f"shapes {a} and {b} do not broadcast")
        out.append(x if y == 1 else y)
    return tuple(out)


def _binary(xs: Sequence[TensorType], attrs: Attrs, consts: Mapping[str, Array]) -> TensorType:
    a, b = xs
    if (a.dtype == "f32") != (b.dtype == "f32"):
        raise GraphError(f"operands {a} and {b} differ in kind")
    return TensorType(broadcast(a.shape, b.shape), accumulator(a.dtype))


def _max_pool(xs: Sequence[TensorType], attrs: Attrs, consts: Mapping[str, Array]) -> TensorType:
    return _windowed(xs[0], xs[0].shape[1], attrs.ints("kernel"), attrs, xs[0].dtype)


def _sum_pool(xs: Sequence[TensorType], attrs: Attrs, consts: Mapping[str, Array]) -> TensorType:
    return _windowed(xs[0], xs[0].shape[1], attrs.ints("kernel"), attrs, accumulator(xs[0].dtype))


def _reduce(xs: Sequence[TensorType], attrs: Attrs, consts: Mapping[str, Array]) -> TensorType:
    x, axes = xs[0], attrs.ints("axes")
    if not axes or any(not 0 < a < x.rank for a in axes) or len(set(axes)) != len(axes):
        raise GraphError(f"cannot reduce {x} over axes {axes}")
    keep = attrs.int("keepdims")
    shape = [1 if i in axes else d for i, d in enumerate(x.shape) if keep or i not in axes]
    return TensorType(tuple(shape), accumulator(x.dtype))


def _reshape(xs: Sequence[TensorType], attrs: Attrs, consts: Mapping[str, Array]) -> TensorType:
    shape = attrs.ints("shape")
    if math.prod(shape[1:]) != xs[0].numel:
        raise GraphError(f"cannot reshape {xs[0]} to {shape}")
    return TensorType(shape, xs[0].dtype)


def _transpose(xs: Sequence[TensorType], attrs: Attrs, consts: Mapping[str, Array]) -> TensorType:
    perm = attrs.ints("perm")
    if sorted(perm) != list(range(xs[0].rank)) or perm[0] != 0:
        raise GraphError(f"cannot transpose {xs[0]} by {perm}: the batch stays first")
    return TensorType(tuple(xs[0].shape[p] for p in perm), xs[0].dtype)


def _slice(xs: Sequence[TensorType], attrs: Attrs, consts: Mapping[str, Array]) -> TensorType:
    x, starts, ends, steps = xs[0], attrs.ints("starts"), attrs.ints("ends"), attrs.ints("steps")
    if not len(starts) == len(ends) == len(steps) == x.rank - 1:
        raise GraphError(f"slice of {x} needs a start, an end and a step for each dimension behind the batch")
    shape = []
    for size, start, end, step in zip(x.shape[1:], starts, ends, steps, strict=True):
        if step < 1 or not 0 <= start < end <= size:
            raise GraphError(f"slice {start}:{end}:{step} does not fit into {size}")
        shape.append(-(-(end - start) // step))
    return TensorType((BATCH, *shape), x.dtype)


def _pad(xs: Sequence[TensorType], attrs: Attrs, consts: Mapping[str, Array]) -> TensorType:
    x, pads = xs[0], attrs.ints("pads")
    if len(pads) != 2 * (x.rank - 1) or any(p < 0 for p in pads):
        raise GraphError(f"pad of {x} needs (before…, after…) for each dimension behind the batch, none negative")
    half = len(pads) // 2
    shape = [d + pads[i] + pads[half + i] for i, d in enumerate(x.shape[1:])]
    return TensorType((BATCH, *shape), x.dtype)


def _resize(xs: Sequence[TensorType], attrs: Attrs, consts: Mapping[str, Array]) -> TensorType:
    x, rows, cols = xs[0], attrs.ints("rows"), attrs.ints("cols")
    if x.rank != 4 or not all(0 <= r < x.shape[2] for r in rows) or not all(0 <= c < x.shape[3] for c in cols):
        raise GraphError(f"resize of {x} reads outside of it")
    return TensorType((BATCH, x.shape[1], len(rows), len(cols)), x.dtype)


def _concat(xs: Sequence[TensorType], attrs: Attrs, consts: Mapping[str, Array]) -> TensorType:
    axis = attrs.int("axis")
    first = xs[0]
    if not 0 < axis < first.rank:
        raise GraphError(f"cannot concatenate {first} along axis {axis}")
    for x in xs:
        if x.dtype != first.dtype or x.rank != first.rank:
            raise GraphError(f"concat mixes {first} and {x}")
        if any(x.shape[i] != first.shape[i] for i in range(x.rank) if i != axis):
            raise GraphError(f"concat along axis {axis} mixes {first} and {x}")
    shape = list(first.shape)
    shape[axis] = sum(x.shape[axis] for x in xs)
    return TensorType(tuple(shape), first.dtype)


def _affine(xs: Sequence[TensorType], attrs: Attrs, consts: Mapping[str, Array]) -> TensorType:
    x = xs[0]
    for const in consts.values():
        if const.ndim != x.rank - 1 or any(c not in (1, d) for c, d in zip(const.shape, x.sample, strict=True)):
            raise GraphError(f"a constant of shape {const.shape} does not broadcast to one sample of {x}")
    return x


def _prelu(xs: Sequence[TensorType], attrs: Attrs, consts: Mapping[str, Array]) -> TensorType:
    return _affine(xs, attrs, consts)


def _requant(xs: Sequence[TensorType], attrs: Attrs, consts: Mapping[str, Array]) -> TensorType:
    shape = xs[0].shape
    for x in xs[1:]:
        shape = broadcast(shape, x.shape)
    out = TensorType(shape, attrs.str("dtype"))
    _affine([out], attrs, consts)
    if len(attrs.ints("zeros")) != len(xs) or ("m1" in consts) != (len(xs) == 2) or ("mneg" in consts and len(xs) != 1):
        raise GraphError(f"requant of {len(xs)} terms needs as many zero points and multipliers")
    return out


def _table(xs: Sequence[TensorType], attrs: Attrs, consts: Mapping[str, Array]) -> TensorType:
    if xs[0].dtype[0] != "u" or consts["t"].shape != (1 << bits_of(xs[0].dtype),):
        raise GraphError(f"table of {consts['t'].shape} entries does not fit {xs[0]}")
    return TensorType(xs[0].shape, attrs.str("dtype"))


_BOTH, _FLOAT, _INT = frozenset(LEVELS), frozenset({FLOAT}), frozenset({INT})
_WINDOW = {"stride": (1, 1), "pad": (0, 0, 0, 0)}

_TABLE = (
    # Linear algebra, on both levels: f32 → f32, unsigned × signed → int32.  On the integer level `pad_value` is the
    # zero point of the input and `weight_bits` the width the weights are packed at; both mean nothing on floats.
    OpDef(
        "conv2d", (1, 1), _BOTH, _conv2d, ("w", "b?"),
        {**_WINDOW, "dilation": (1, 1), "groups": 1, "pad_value": 0, "weight_bits": 8},
    ),
    OpDef("linear", (1, 1), _BOTH, _linear, ("w", "b?"), {"weight_bits": 8}),
    # Arithmetic of the float level.
    OpDef("batch_norm", (1, 1), _FLOAT, _same, ("scale", "bias", "mean", "var"), {"eps": 1e-5}),
    OpDef("affine", (1, 1), _FLOAT, _affine, ("scale", "shift"), {}),
    OpDef("add", (2, 2), _FLOAT, _binary, (), {}),
    OpDef("sub", (2, 2), _FLOAT, _binary, (), {}),
    OpDef("mul", (2, 2), _BOTH, _binary, (), {"zeros": (0, 0)}),
    OpDef("clip", (1, 1), _FLOAT, _same, (), {"lo": -math.inf, "hi": math.inf}),
    OpDef("prelu", (1, 1), _FLOAT, _prelu, ("slope",), {}),
    OpDef("unary", (1, 1), _FLOAT, _same, (), {"expr": ...}),
    OpDef("softmax", (1, 1), _FLOAT, _same, (), {"axis": ...}),
    OpDef("avg_pool", (1, 1), _FLOAT, _sum_pool, (), {**_WINDOW, "kernel": ..., "count_pad": 1}),
    OpDef("reduce_mean", (1, 1), _FLOAT, _reduce, (), {"axes": ..., "keepdims": 1}),
    # Sums of the integer level; the division is inside the requant behind them.
    OpDef("sum_pool", (1, 1), _INT, _sum_pool, (), {**_WINDOW, "kernel": ..., "pad_value": 0}),
    OpDef("reduce_sum", (1, 1), _INT, _reduce, (), {"axes": ..., "keepdims": 1}),
    # The one rounding rule, and exact tables.
    OpDef(
        "requant", (1, 2), _INT, _requant, ("m0", "e", "m1?", "mneg?"),
        {"zeros": (0,), "zp": 0, "lo": ..., "hi": ..., "dtype": ...},
    ),
    OpDef("table", (1, 1), _INT, _table, ("t",), {"dtype": ...}),
    # Selection and movement: the same on both levels, exact.
    OpDef("max_pool", (1, 1), _BOTH, _max_pool, (), {**_WINDOW, "kernel": ..., "dilation": (1, 1)}),
    OpDef("concat", (1, 4096), _BOTH, _concat, (), {"axis": ...}),
    OpDef("reshape", (1, 1), _BOTH, _reshape, (), {"shape": ...}),
    OpDef("transpose", (1, 1), _BOTH, _transpose, (), {"perm": ...}),
    OpDef("slice", (1, 1), _BOTH, _slice, (), {"starts": ..., "ends": ..., "steps": ...}),
    OpDef("pad", (1, 1), _BOTH, _pad, (), {"pads": ..., "value": 0.0}),
    OpDef("resize", (1, 1), _BOTH, _resize, (), {"rows": ..., "cols": ...}),
)  # fmt: skip

OPS: Mapping[str, OpDef] = {op.name: op for op in _TABLE}

MOVEMENT = frozenset({"concat", "reshape", "transpose", "slice", "pad", "resize"})
"""Operators that copy elements and never compute: they keep the grid (scale and zero point) of what they move."""

GRID_KEEPING = MOVEMENT | {"max_pool"}
"""Operators whose output lies on the grid of their inputs."""

WEIGHTED = frozenset({"conv2d", "linear"})
"""Operators with trained weights: the layers whose precision is planned."""
