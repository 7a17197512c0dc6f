"""The interpreter against plain loops in Python integers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from qcompile.errors import OverflowProofError
from qcompile.ir import BATCH, INT, Graph, GraphBuilder, Grid, TensorType
from qcompile.semantics import interp, ranges

GRID = Grid(0.1, 3, "u8")


def conv_graph(w: np.ndarray, b: np.ndarray, size: int, **attrs: object) -> Graph:
    builder = GraphBuilder("conv", INT)
    groups = attrs.get("groups", 1)
    assert isinstance(groups, int)
    x = builder.input("x", TensorType((BATCH, w.shape[1] * groups, size, size), "u8"), GRID)
    y = builder.add("conv2d", [x], name="y", consts={"w": w, "b": b}, attrs=attrs)  # type: ignore[arg-type]
    builder.output("y", y, Grid(1.0, 0, "i32"))
    return builder.build()


def plain_conv(x: np.ndarray, w: np.ndarray, b: np.ndarray, stride, pad, dilation, groups, fill) -> np.ndarray:  # type: ignore[no-untyped-def]
    n, c, h, width = x.shape
    padded = np.full((n, c, h + pad[0] + pad[2], width + pad[1] + pad[3]), fill, np.int64)
    padded[:, :, pad[0] : pad[0] + h, pad[1] : pad[1] + width] = x
    oh = (padded.shape[2] - dilation[0] * (w.shape[2] - 1) - 1) // stride[0] + 1
    ow = (padded.shape[3] - dilation[1] * (w.shape[3] - 1) - 1) // stride[1] + 1
    out = np.zeros((n, len(w), oh, ow), np.int64)
    per = len(w) // groups
    for i, o, y, z in itertools.product(range(n), range(len(w)), range(oh), range(ow)):
        total = int(b[o])
        for q, r, s in itertools.product(range(w.shape[1]), range(w.shape[2]), range(w.shape[3])):
            channel = (o // per) * w.shape[1] + q
            value = padded[i, channel, y * stride[0] + r * dilation[0], z * stride[1] + s * dilation[1]]
            total += int(value) * int(w[o, q, r, s])
        out[i, o, y, z] = total
    return out


@pytest.mark.parametrize(
    ("shape", "attrs"),
    [
        ((4, 3, 3, 3), {"pad": (1, 1, 1, 1), "pad_value": 3}),
        ((4, 3, 3, 2), {"stride": (2, 1), "pad": (0, 1, 2, 0), "pad_value": 7}),
        ((6, 1, 3, 3), {"groups": 6, "pad": (1, 1, 1, 1), "pad_value": 255}),
        ((6, 2, 3, 3), {"groups": 3, "dilation": (2, 2)}),
    ],
)
def test_conv2d(shape: tuple[int, ...], attrs: dict[str, object]) -> None:
    rng = np.random.default_rng(0)
    w = rng.integers(-127, 128, shape).astype(np.int8)
    b = rng.integers(-(10**6), 10**6, shape[0]).astype(np.int32)
    graph = conv_graph(w, b, 7, **attrs)
    x = rng.integers(0, 256, (2, *graph.inputs[0].type.sample)).astype(np.uint8)
    a = graph.nodes[0].attrs
    want = plain_conv(x, w, b, a.ints("stride"), a.ints("pad"), a.ints("dilation"), a.int("groups"), a.int("pad_value"))
    assert np.array_equal(interp.run(graph, {"x": x})["y"], want)


def test_ranges_are_reached() -> None:
    """The bound of an accumulator is attained by the worst input, so it cannot be too loose or too tight."""
    w = np.array([[[[5]], [[-7]]]], np.int8)
    graph = conv_graph(w, np.array([10], np.int32), 1)
    assert ranges.prove(graph)["y"] == (10 - 7 * 255, 10 + 5 * 255)
    worst = np.array([[[[255]], [[0]]]], np.uint8)
    assert interp.run(graph, {"x": worst})["y"].item() == 10 + 5 * 255


def test_accumulator_overflow_is_refused_at_the_bound() -> None:
    w = np.full((1, 4, 1, 1), 127, np.int8)
    room = 2**31 - 1 - 4 * 127 * 255
    assert ranges.prove(conv_graph(w, np.array([room], np.int32), 1))["y"][1] == 2**31 - 1
    with pytest.raises(OverflowProofError, match="beyond 32 bits") as caught:
        ranges.prove(conv_graph(w, np.array([room + 1], np.int32), 1))
    assert caught.value.node == "y"
