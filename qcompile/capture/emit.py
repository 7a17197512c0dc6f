"""What all captures share: values with the shape the source gives them, and movement between layouts.

Captures read a network as the source runs it on one sample.  A source value of shape S (with a batch of 1) is
the graph value (N, *S[1:]) where S[0] is 1, and (N, *S) otherwise: networks that fold the batch into another
dimension for a while (a channel shuffle written for a batch of 1, say) are read correctly this way.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qcompile.ir import BATCH, FLOAT, Array, GraphBuilder, TensorType
from qcompile.ir.ops import AttrValue

MAX_RUNS = 64
"""A gather of this many contiguous runs at most becomes a concat of slices."""


class Unsupported(Exception):  # noqa: N818  (not an error of ours: it is collected and reported with its node)
    """This form of an operator cannot be captured; the text says why."""


@dataclass(frozen=True, slots=True)
class Value:
    """A computed value: its name in the graph and its shape in the source for one sample, batch included."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Const:
    """A constant, and the name of the weight it comes from (kept through folding)."""

    array: Array
    name: str


def layout(shape: Sequence[int]) -> tuple[int, ...]:
    """The graph's shape of a source value (N first)."""
    shape = tuple(shape)
    return (BATCH, *(shape[1:] if shape and shape[0] == 1 else shape))


def clean(name: str) -> str:
    """A name of the characters [A-Za-z0-9_./:-] without a leading slash."""
    return re.sub(r"[^A-Za-z0-9_./:-]", "_", name).lstrip("/") or "value"


_MODULE_WEIGHT = re.compile(r"^(?P<path>.+)[./](weight|kernel|w|gamma|scale)$")


def module_path(weight: str) -> str | None:
    """The module of a weight: layer1.0.conv1.weight → layer1.0.conv1; None where its name does not tell."""
    match = _MODULE_WEIGHT.match(weight)
    return match["path"].replace("/", ".") if match else None


def normal_axis(axis: int, rank: int) -> int:
    """A non-negative axis; Unsupported where it lies outside of the rank."""
    if not -rank <= axis < rank:
        raise Unsupported(f"axis {axis} lies outside of rank {rank}")
    return axis % rank


class Emitter:
    """Appends float nodes to a graph; every method takes and returns source values.

    `name` and `origin` are those of the source node being captured; helper nodes get suffixes.
    """

    def __init__(self, graph_name: str) -> None:
        self.builder = GraphBuilder(clean(graph_name), FLOAT)
        self.name = "value"
        self.origin: tuple[str, ...] = ()

    def at(self, name: str, origin: str) -> None:
        """Name the nodes emitted from here on."""
        self.name, self.origin = clean(name), (origin,) if origin else ()

    def input(self, name: str, shape: Sequence[int]) -> Value:
        return Value(self.builder.input(clean(name), TensorType(layout(shape), "f32")), tuple(shape))

    def node(
        self,
        op: str,
        inputs: Iterable[str],
        consts: Mapping[str, Array] | None = None,
        attrs: Mapping[str, AttrValue] | None = None,
        name: str | None = None,
    ) -> str:
        """Append a node and return the name of its graph value."""
        arrays = {role: finite(array) for role, array in (consts or {}).items()}
        return self.builder.add(
            op, tuple(inputs), name=name or self.name, consts=arrays, attrs=attrs, origin=self.origin
        )

    def source(self, graph_value: str, shape: Sequence[int]) -> Value:
        """Read a graph value as a source value, reshaped where the layouts differ."""
        wanted = layout(shape)
        have = self.builder.type_of(graph_value)
        if have.shape != wanted:
            if have.numel != math.prod(wanted[1:]):
                raise Unsupported(f"cannot bring {have} into the shape {tuple(shape)}")
            graph_value = self.node("reshape", [graph_value], attrs={"shape": wanted}, name=f"{self.name}.reshape")
        return Value(graph_value, tuple(shape))

    def full(self, x: Value) -> str:
        """The graph value (N, *S), in which dimension 0 of the source is an ordinary dimension."""
        wanted = (BATCH, *x.shape)
        if self.builder.type_of(x.name).shape == wanted:
            return x.name
        return self.node("reshape", [x.name], attrs={"shape": wanted}, name=f"{self.name}.reshape")

    def batched(self, x: Value) -> str:
        """The graph value (N, *S[1:]); Unsupported where the batch is not the source's dimension 0."""
        if not x.shape or x.shape[0] != 1:
            raise Unsupported(f"its input of shape {x.shape} does not have the batch in dimension 0")
        return x.name

    def open_axes(self, x: Value, axes: Iterable[int]) -> tuple[str, int]:
        """The graph value in which these source axes are ordinary ones, and how far they moved (0 or 1)."""
        if x.shape and x.shape[0] == 1 and 0 not in set(axes):
            return x.name, 0
        return self.full(x), 1

    # Movement.

    def reshape(self, x: Value, shape: Sequence[int]) -> Value:
        """`shape` without −1 and 0 placeholders."""
        if math.prod(shape) != math.prod(x.shape):
            raise Unsupported(f"cannot reshape {x.shape} to {tuple(shape)}")
        if layout(shape) == layout(x.shape):
            return Value(x.name, tuple(shape))
        value = self.node("reshape", [x.name], attrs={"shape": layout(shape)})
        return Value(value, tuple(shape))

    def transpose(self, x: Value, perm: Sequence[int]) -> Value:
        if sorted(perm) != list(range(len(x.shape))):
            raise Unsupported(f"{tuple(perm)} is no permutation of the axes of {x.shape}")
        shape = tuple(x.shape[p] for p in perm)
        moved = [axis for axis, p in enumerate(perm) if axis != p]
        value, shift = self.open_axes(x, moved)
        order = (0, *(p + 1 for p in perm)) if shift else tuple(perm)
        return self.source(self.node("transpose", [value], attrs={"perm": order}), shape)

    def slice(self, x: Value, parts: Mapping[int, tuple[int, int, int]]) -> Value:
        """`parts` is (start, end, step) by axis, with 0 <= start < end <= size and step >= 1."""
        shape, starts, ends, steps = list(x.shape), [0] * len(x.shape), list(x.shape), [1] * len(x.shape)
        for axis, (start, end, step) in parts.items():
            if step < 1:
                raise Unsupported("a negative step reverses the order, which is not supported")
            if not 0 <= start < end <= x.shape[axis]:
                raise Unsupported(f"the slice {start}:{end} of a dimension of {x.shape[axis]} is empty")
            shape[axis] = -(-(end - start) // step)
            # The end right behind the last element: one form for x[::2] and x[:31:2].
            starts[axis], ends[axis], steps[axis] = start, start + (shape[axis] - 1) * step + 1, step
        changed = [axis for axis, size in enumerate(x.shape) if shape[axis] != size]
        if not changed:
            return x
        value, shift = self.open_axes(x, changed)
        cut = slice(None) if shift else slice(1, None)
        attrs = {"starts": tuple(starts[cut]), "ends": tuple(ends[cut]), "steps": tuple(steps[cut])}
        return self.source(self.node("slice", [value], attrs=attrs), shape)

    def concat(self, values: Sequence[Value], axis: int) -> Value:
        axis = normal_axis(axis, len(values[0].shape))
        if any(len(v.shape) != len(values[0].shape) for v in values):
            raise Unsupported(f"it joins values of different ranks: {', '.join(str(v.shape) for v in values)}")
        shape = list(values[0].shape)
        shape[axis] = sum(v.shape[axis] for v in values)
        if axis and all(v.shape[0] == 1 for v in values):
            return self.source(self.node("concat", [v.name for v in values], attrs={"axis": axis}), shape)
        return self.source(self.node("concat", [self.full(v) for v in values], attrs={"axis": axis + 1}), shape)

    def gather(self, x: Value, indices: Array, axis: int) -> Value:
        """Constant indices along one axis: slices, a row or column selection, or a concat of slices."""
        axis = normal_axis(axis, len(x.shape))
        size = x.shape[axis]
        index = [int(i) for i in np.asarray(indices).reshape(-1)]
        if not index or any(not -size <= i < size for i in index):
            raise Unsupported(f"indices outside of a dimension of {size}")
        index = [i % size for i in index]
        shape = (*x.shape[:axis], *np.asarray(indices).shape, *x.shape[axis + 1 :])
        step = index[1] - index[0] if len(index) > 1 else 1
        if step >= 1 and index == list(range(index[0], index[-1] + 1, step)):
            picked = self.slice(x, {axis: (index[0], index[-1] + 1, step)})
        elif axis in (2, 3) and len(x.shape) == 4 and x.shape[0] == 1:
            both = [tuple(range(n)) for n in x.shape[2:]]
            both[axis - 2] = tuple(index)
            picked = self.select(x, both[0], both[1])
        else:
            breaks = [i for i in range(1, len(index)) if index[i] != index[i - 1] + 1]
            bounds = list(zip([0, *breaks], [*breaks, len(index)], strict=True))
            if len(bounds) > MAX_RUNS:
                raise Unsupported(f"it gathers {len(bounds)} separate runs; at most {MAX_RUNS} are supported")
            runs = [self.slice(x, {axis: (index[a], index[b - 1] + 1, 1)}) for a, b in bounds]
            picked = self.concat(runs, axis)
        return self.reshape(picked, shape)

    def select(self, x: Value, rows: Sequence[int], cols: Sequence[int]) -> Value:
        """Rows and columns of an NCHW value by index."""
        if len(x.shape) != 4:
            raise Unsupported(f"only images (N, C, H, W) can be resized, not {x.shape}")
        if tuple(rows) == tuple(range(x.shape[2])) and tuple(cols) == tuple(range(x.shape[3])):
            return x
        attrs = {"rows": tuple(rows), "cols": tuple(cols)}
        value = self.node("resize", [self.batched(x)], attrs=attrs)
        return self.source(value, (*x.shape[:2], len(rows), len(cols)))

    def pad(self, x: Value, before: Sequence[int], after: Sequence[int], value: float) -> Value:
        """Constant padding by axis; negative amounts cut."""
        cuts = {
            axis: (max(0, -b), size - max(0, -a), 1)
            for axis, (b, a, size) in enumerate(zip(before, after, x.shape, strict=True))
            if b < 0 or a < 0
        }
        x = self.slice(x, cuts) if cuts else x
        before, after = [max(0, b) for b in before], [max(0, a) for a in after]
        touched = [axis for axis in range(len(before)) if before[axis] or after[axis]]
        if not touched:
            return x
        shape = [size + b + a for size, b, a in zip(x.shape, before, after, strict=True)]
        name, shift = self.open_axes(x, touched)
        cut = slice(None) if shift else slice(1, None)
        attrs: dict[str, AttrValue] = {"pads": (*before[cut], *after[cut]), "value": single(value)}
        return self.source(self.node("pad", [name], attrs=attrs), shape)

    def expand(self, x: Value, shape: Sequence[int]) -> Value:
        """Broadcast to a shape: only of rows and columns of an image, or of nothing."""
        wanted = np.broadcast_shapes(x.shape, tuple(int(s) for s in shape))
        x = self.reshape(x, (1,) * (len(wanted) - len(x.shape)) + x.shape)
        if wanted == x.shape:
            return x
        if len(wanted) != 4 or wanted[:2] != x.shape[:2]:
            raise Unsupported(f"it repeats {x.shape} to {wanted}; only rows and columns of an image can be repeated")
        return self.select(x, *(_repeat(have, want) for have, want in zip(x.shape[2:], wanted[2:], strict=True)))


def _repeat(have: int, want: int) -> tuple[int, ...]:
    return tuple(range(have)) if have == want else (0,) * want


def single(value: float) -> float:
    """A number as ONNX files hold it, in float32: torch's 1e-5 and ONNX's 9.9999997e-06 become one."""
    return float(np.float32(value))


def finite(array: Array) -> Array:
    """The array as contiguous float32; Unsupported where it does not stay finite."""
    result = np.ascontiguousarray(array, dtype=np.float32).reshape(np.shape(array))
    if not np.isfinite(result).all():
        raise Unsupported("a constant is not finite in float32")
    return result
