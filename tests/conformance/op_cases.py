"""Small integer graphs, one per operator, shape and bit width, gathered into one graph so that it is
compiled once."""

from __future__ import annotations

from typing import Any

import numpy as np

from qcompile.ir import BATCH, INT, Graph, GraphBuilder, Grid, TensorType, int_range, storage
from qcompile.semantics.grids import weight_range

SAMPLES = ("zeros", "largest", "random", "random, few values")


class Cases:
    """Adds inputs, operators and outputs to one graph; `rng` makes the constants."""

    def __init__(self, seed: int = 0) -> None:
        self.b = GraphBuilder("conformance", INT)
        self.rng = np.random.default_rng(seed)
        self._inputs: dict[str, str] = {}
        self._count = 0

    def name(self, text: str) -> str:
        self._count += 1
        return f"{self._count:03d}:{text}"

    def input(self, *shape: int, dtype: str = "u8") -> str:
        name = self.name(f"{dtype}{list(shape)}")
        self.b.input(name, TensorType((BATCH, *shape), dtype), Grid(1.0, 0, dtype))
        return name

    def image(self, *shape: int, dtype: str = "u8") -> str:
        """A (C, H, W) input copied into the kernels' own layout, so that the case reads channels-last."""
        value = self.input(*shape, dtype=dtype)
        full = (BATCH, *shape)
        return self.b.add("reshape", [value], name=f"{value}:in", attrs={"shape": full})

    def op(self, op: str, *inputs: str, consts: Any = None, **attrs: Any) -> str:
        return self.b.add(op, inputs, name=self.name(op), consts=consts or {}, attrs=attrs)

    def show(self, value: str) -> None:
        type_ = self.b.type_of(value)
        if len(type_.sample) == 3:
            value = self.b.add("reshape", [value], name=f"{value}:out", attrs={"shape": type_.shape})
        self.b.output(value, value, Grid(1.0, 0, type_.dtype))

    def weights(self, *shape: int, bits: int = 8) -> np.ndarray[Any, Any]:
        lo, hi = weight_range(bits)
        w = self.rng.integers(lo, hi + 1, shape).astype(np.int8)
        w[-1], w[0] = lo, hi
        w.reshape(-1)[-1] = hi
        return w

    def bias(self, size: int) -> np.ndarray[Any, Any]:
        return self.rng.integers(-(1 << 12), 1 << 12, size).astype(np.int32)

    def conv(self, x: str, out: int, kernel: tuple[int, int], *, bits: int = 8, groups: int = 1, **attrs: Any) -> str:
        channels = self.b.type_of(x).sample[0]
        w = self.weights(out, channels // groups, *kernel, bits=bits)
        return self.op("conv2d", x, consts={"w": w, "b": self.bias(out)}, groups=groups, **attrs)

    def shaped_conv(
        self,
        channels: int,
        out: int,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        pad: tuple[int, int, int, int],
        dilation: tuple[int, int],
        size: tuple[int, int],
        bits: int,
    ) -> tuple[str, float]:
        """A convolution of an image of its own, and about what its sums reach."""
        x = self.image(channels, *size)
        reach = channels * kernel[0] * kernel[1] * 40.0 * 2 ** (bits - 1)
        return self.conv(x, out, kernel, bits=bits, stride=stride, pad=pad, dilation=dilation, pad_value=3), reach

    def linear(self, x: str, out: int, bits: int = 8) -> str:
        w = self.weights(out, self.b.type_of(x).sample[-1], bits=bits)
        return self.op("linear", x, consts={"w": w, "b": self.bias(out)})

    def requant(
        self,
        *terms: str,
        reach: float = 1 << 16,
        dtype: str = "u8",
        per: str = "channel",
        zeros: tuple[int, ...] | None = None,
        zp: int = 0,
        negative: bool = False,
        small_shift: bool = False,
    ) -> str:
        """A requant whose result covers the range of `dtype` when its terms reach ±`reach`."""
        sample = self.b.type_of(terms[0]).sample
        for other in terms[1:]:
            sample = np.broadcast_shapes(sample, self.b.type_of(other).sample)
        shape = {
            "channel": (sample[0], *[1] * (len(sample) - 1))
            if len(sample) == 3
            else (*[1] * (len(sample) - 1), sample[-1]),
            "tensor": (1,) * len(sample),
            "position": tuple(sample),
        }[per]
        lo, hi = int_range(dtype)
        consts = {}
        if small_shift:
            consts["e"] = self.rng.integers(1, 32, shape).astype(np.int32)
            for i in range(len(terms)):
                consts[f"m{i}"] = self.rng.integers(-(1 << 20), 1 << 20, shape).astype(np.int32)
        else:
            target = min(hi - lo, 1 << 16) / reach
            e = 30 + max(0, round(-np.log2(target)))
            consts["e"] = (e + self.rng.integers(0, 3, shape)).astype(np.int32)
            for i in range(len(terms)):
                consts[f"m{i}"] = self.rng.integers(1 << 30, (1 << 31) - 1, shape).astype(np.int32)
            consts["m0"].reshape(-1)[0] = 1 << 30  # powers of two meet ties
        if negative:
            consts["mneg"] = (consts["m0"] // 4).astype(np.int32)
            if per == "channel":
                consts["mneg"].reshape(-1)[0] *= -1
        return self.op(
            "requant",
            *terms,
            consts=consts,
            zeros=zeros or (0,) * len(terms),
            zp=zp,
            lo=lo,
            hi=hi,
            dtype=dtype,
        )

    def graph(self) -> Graph:
        return self.b.build()


def samples(graph: Graph, seed: int = 1) -> dict[str, np.ndarray[Any, Any]]:
    """For every input a batch of SAMPLES."""
    rng = np.random.default_rng(seed)
    found = {}
    for port in graph.inputs:
        lo, hi = int_range(port.type.dtype) if port.type.dtype != "i32" else (-(1 << 28), 1 << 28)
        shape = port.type.sample
        few = rng.choice(np.array([lo, 0, 1, hi]), shape)
        batch = [np.zeros(shape), np.full(shape, hi), rng.integers(lo, hi + 1, shape), few]
        found[port.name] = np.stack(batch).astype(storage(port.type.dtype))
    return found


def dense_cases(c: Cases) -> None:
    """Convolutions and linear layers with a fused requant."""
    for shape in (
        (64, 64, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), (14, 14), 8),
        (16, 16, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), (9, 13), 4),
        (16, 32, (3, 3), (2, 2), (0, 0, 1, 1), (1, 1), (8, 8), 8),
        (32, 48, (1, 1), (2, 2), (0, 0, 0, 0), (1, 1), (7, 9), 5),
        (3, 16, (7, 7), (2, 2), (3, 3, 3, 3), (1, 1), (21, 19), 8),
        (1, 8, (10, 4), (2, 2), (4, 1, 5, 1), (1, 1), (49, 10), 8),
        # Rows of few bytes, whose ends may be gathered: 1 and 3 of each row, rows apart, blocks that are not full.
        (3, 64, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), (19, 17), 8),
        (3, 33, (3, 3), (1, 1), (2, 1, 2, 1), (2, 1), (9, 10), 8),
        (1, 20, (5, 5), (1, 1), (2, 2, 2, 2), (1, 1), (9, 11), 8),
        (1, 16, (4, 7), (1, 1), (3, 3, 0, 3), (1, 1), (12, 9), 8),
        (4, 5, (3, 3), (1, 1), (2, 2, 2, 2), (2, 2), (6, 6), 8),
        (20, 17, (3, 2), (1, 1), (1, 0, 1, 1), (1, 1), (5, 7), 6),
        (128, 100, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), (1, 1), 8),
        (7, 33, (1, 5), (1, 3), (0, 2, 0, 2), (1, 1), (3, 17), 3),
        (256, 64, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), (7, 7), 2),
    ):
        y, reach = c.shaped_conv(*shape)
        bits = shape[-1]
        c.show(c.requant(y, reach=reach, zp=7, dtype=f"u{bits if bits > 3 else 8}"))
    for groups, channels, out in ((2, 32, 64), (4, 16, 16), (3, 9, 12), (2, 8, 48), (8, 16, 8)):
        x = c.image(channels, 6, 7, dtype="u6")
        c.show(c.requant(c.conv(x, out, (3, 3), groups=groups, pad=(1, 1, 1, 1)), reach=1 << 15))
    for channels, kernel, stride, pad, bits in (
        (16, (3, 3), (1, 1), (1, 1, 1, 1), 8),
        (40, (3, 3), (2, 2), (0, 0, 1, 1), 8),
        (5, (5, 5), (1, 1), (2, 2, 2, 2), 4),
        (24, (7, 7), (1, 1), (3, 3, 3, 3), 8),
        (144, (3, 3), (1, 1), (1, 1, 1, 1), 8),
        (96, (3, 3), (2, 2), (1, 1, 1, 1), 8),
        (64, (3, 3), (1, 1), (1, 1, 1, 1), 8),
        (16, (3, 3), (2, 2), (1, 1, 1, 1), 8),
        (48, (5, 5), (2, 2), (2, 2, 2, 2), 8),
        (80, (2, 3), (2, 1), (1, 1, 0, 1), 6),
        (48, (4, 4), (1, 1), (0, 0, 0, 0), 8),
    ):
        x = c.image(channels, 11, 9)
        y = c.conv(x, channels, kernel, bits=bits, groups=channels, stride=stride, pad=pad, pad_value=128)
        c.show(c.requant(y, reach=1 << 14, zp=128))
        if channels in (16, 96, 144):
            dtype, size = ("u5", (2, 2)) if channels > 16 else ("u8", (1, 1))
            y = c.conv(x, channels, kernel, groups=channels, pad=(2, 2, 2, 2), dilation=size, pad_value=128)
            c.show(c.requant(y, reach=1 << 17, zp=9, dtype=dtype))
            c.show(c.requant(y, small_shift=True, zp=100))
    c.show(c.conv(c.image(12, 4, 5), 20, (3, 3), pad=(1, 1, 1, 1)))
    c.show(c.requant(c.conv(c.input(3, 6, 6), 8, (3, 3), pad=(1, 1, 1, 1), pad_value=9), reach=1 << 17))
    for shape, out in (((64,), 10), ((63,), 17), ((8, 32), 24), ((2, 5, 13), 33), ((512,), 200)):
        x = c.input(*shape)
        c.show(c.requant(c.linear(x, out), reach=1 << 18))
        if len(shape) > 1:
            c.show(c.requant(c.linear(x, out), reach=1 << 18, per="position"))
        held = c.op("table", x, consts={"t": np.arange(256)[::-1].astype(np.uint8).copy()}, dtype="u8")
        c.show(c.linear(held, out))


def winograd_cases(c: Cases) -> None:
    """3×3 convolutions of 6-bit activations and 4-bit weights, and extreme 5-bit ones."""
    for channels, out, size, pad, bits in (
        (16, 16, (8, 8), (1, 1, 1, 1), 4),
        (64, 64, (14, 14), (1, 1, 1, 1), 4),
        (20, 24, (7, 9), (1, 1, 1, 1), 3),
        (128, 40, (5, 6), (0, 0, 0, 0), 4),
        (48, 17, (4, 3), (2, 1, 0, 1), 2),
        # Tiles that stick out: all in one chunk, by rows of 4 and of 7, and in chunks that know of no edge.
        (32, 34, (7, 7), (1, 1, 1, 1), 4),
        (16, 16, (13, 15), (1, 1, 1, 1), 4),
        (16, 32, (11, 29), (1, 1, 1, 1), 4),
    ):
        for act in (6, 4):
            x, r = c.image(channels, *size, dtype=f"u{act}"), None
            y = c.conv(x, out, (3, 3), bits=bits, pad=pad, pad_value=5)
            c.show(c.requant(y, reach=channels * 9 * 20.0 * 2 ** (bits - 1), zp=3))
            r = c.image(*c.b.type_of(y).sample, dtype="u7")
            y = c.conv(x, out, (3, 3), bits=bits, pad=pad, pad_value=5)
            c.show(c.requant(y, r, reach=channels * 9 * 20.0 * 2 ** (bits - 1), zeros=(0, 60), dtype="u6"))


def fused_cases(c: Cases) -> None:
    """Residual additions in the epilogue, wide results, and requants on their own."""
    for channels, out, size in ((16, 16, (8, 8)), (20, 24, (5, 6)), (64, 64, (7, 7))):
        x, r = c.image(channels, *size), c.image(out, *size)
        y = c.conv(x, out, (3, 3), pad=(1, 1, 1, 1))
        c.show(c.requant(y, r, reach=1 << 17, zeros=(0, 11), zp=4))
        y = c.conv(x, out, (1, 1))
        wide = c.requant(r, y, reach=1 << 17, dtype="i32", zeros=(3, 0))
        c.show(wide)
        c.show(c.requant(wide, r, reach=1 << 17, per="tensor", zeros=(-5, 200)))
    for channels in (16, 19, 3):
        x, y = c.image(channels, 5, 7), c.image(channels, 5, 7)
        scale = c.image(channels, 1, 1)
        c.show(c.requant(x, reach=255, zeros=(77,), zp=13))
        c.show(c.requant(x, y, reach=300, zeros=(77, 3), zp=13, per="tensor", dtype="u5"))
        c.show(c.requant(x, y, reach=300, per="position"))
        c.show(c.requant(x, scale, reach=300))
        c.show(c.requant(x, reach=255, zeros=(100,), negative=True, zp=20))
        c.show(c.requant(x, reach=255, zeros=(100,), negative=True, zp=20, small_shift=True))
        c.show(c.requant(x, y, small_shift=True, zeros=(1, 2), dtype="i32"))
        c.show(c.requant(c.op("mul", x, scale, zeros=(5, 9)), reach=1 << 15, zp=3))
        c.show(c.op("mul", x, y, zeros=(0, 255)))
    for shape in ((37,), (3, 21), (2, 3, 4, 5)):
        x, y = c.input(*shape), c.input(*shape, dtype="i32")
        c.show(c.requant(x, y, reach=1 << 28, zeros=(8, -3)))
        c.show(c.requant(y, reach=1 << 28, zeros=(0,), negative=True, zp=100))
        c.show(c.requant(y, zeros=(1,), small_shift=True, zp=-100, dtype="i32"))
        c.show(c.requant(x, reach=200, per="position"))


def pool_cases(c: Cases) -> None:
    """Pooling, reductions and tables."""
    for channels, size, kernel, stride, pad in (
        (16, (8, 8), (2, 2), (2, 2), (0, 0, 0, 0)),
        (64, (9, 7), (3, 3), (2, 2), (1, 1, 1, 1)),
        (20, (7, 7), (7, 7), (1, 1), (0, 0, 0, 0)),
        (3, (5, 6), (3, 2), (1, 1), (1, 0, 0, 1)),
    ):
        x = c.image(channels, *size)
        c.show(c.op("max_pool", x, kernel=kernel, stride=stride, pad=pad))
        c.show(c.requant(c.op("sum_pool", x, kernel=kernel, stride=stride, pad=pad, pad_value=6), reach=1 << 11))
        c.show(c.op("sum_pool", x, kernel=kernel, stride=stride, pad=pad, pad_value=0))
    x = c.image(18, 9, 9)
    c.show(c.op("max_pool", x, kernel=(3, 3), stride=(1, 1), pad=(2, 2, 2, 2), dilation=(2, 2)))
    for axes, keep in (((2, 3), 1), ((2, 3), 0), ((1,), 1), ((1,), 0), ((1, 3), 1), ((3,), 0)):
        c.show(c.requant(c.op("reduce_sum", x, axes=axes, keepdims=keep), reach=1 << 14, per="tensor"))
    c.show(c.op("reduce_sum", c.input(6, 10), axes=(2,), keepdims=0))
    for shape in ((16, 4, 4), (5, 3, 3), (33,), (4, 9)):
        for bits in (8, 4):
            x = c.image(*shape, dtype=f"u{bits}") if len(shape) == 3 else c.input(*shape, dtype=f"u{bits}")
            t = c.rng.integers(0, 256, 1 << bits).astype(np.uint8)
            c.show(c.op("table", x, consts={"t": t}, dtype="u8"))
    x = c.input(40)
    c.show(c.op("table", x, consts={"t": c.rng.integers(-(1 << 20), 1 << 20, 256).astype(np.int32)}, dtype="i32"))


def movement_cases(c: Cases) -> None:
    """Operators that copy."""
    for dtype in ("u8", "i32"):
        a, b = c.image(16, 5, 6, dtype=dtype), c.image(7, 5, 6, dtype=dtype)
        c.show(c.op("concat", a, b, a, axis=1))
        c.show(c.op("concat", b, b, axis=2))
        c.show(c.op("concat", a, a, axis=3))
        c.show(c.op("reshape", a, shape=(BATCH, 480)))
        c.show(c.op("reshape", b, shape=(BATCH, 5, 7, 6)))
        c.show(c.op("transpose", a, perm=(0, 2, 3, 1)))
        c.show(c.op("transpose", a, perm=(0, 1, 3, 2)))
        c.show(c.op("slice", a, starts=(3, 1, 0), ends=(14, 5, 6), steps=(1, 2, 3)))
        c.show(c.op("slice", a, starts=(0, 0, 0), ends=(16, 5, 6), steps=(2, 1, 1)))
        c.show(c.op("pad", b, pads=(0, 1, 2, 3, 0, 1), value=5.0))
        c.show(c.op("resize", a, rows=(0, 0, 1, 1, 2, 4), cols=(5, 3, 1, 0)))
        for channels, step in ((100, 2), (48, 2), (70, 3), (9, 4)):  # channels dealt in turn
            deep = c.image(channels, 3, 4, dtype=dtype)
            c.show(c.op("slice", deep, starts=(step - 1, 0, 1), ends=(channels, 3, 4), steps=(step, 1, 2)))
        v, w = c.input(12, dtype=dtype), c.input(3, 8, dtype=dtype)
        c.show(c.op("reshape", v, shape=(BATCH, 3, 2, 2)))
        c.show(c.op("concat", v, v, axis=1))
        c.show(c.op("transpose", w, perm=(0, 2, 1)))
        c.show(c.op("slice", w, starts=(1, 2), ends=(3, 8), steps=(1, 1)))
        c.show(c.op("pad", w, pads=(0, 1, 1, 0), value=9.0))
        c.show(c.op("reshape", c.op("pad", v, pads=(2, 2), value=0.0), shape=(BATCH, 4, 4)))


FAMILIES = {
    "dense": dense_cases,
    "winograd": winograd_cases,
    "fused": fused_cases,
    "pool": pool_cases,
    "movement": movement_cases,
}
