"""integerize: the integers stand for the floats, at every width, and structure follows the rules."""

from __future__ import annotations

import numpy as np
import pytest

from passes.quantize.integerize import Integerizer
from passes.structure import Structure
from qcompile.exec import float_exec
from qcompile.ir import BATCH, FLOAT, Graph, GraphBuilder, TensorType, verify
from qcompile.pm.facts import BitChoice, Range
from qcompile.semantics import interp, ranges
from qcompile.semantics.grids import dequantize, quantize

RNG = np.random.default_rng(0)
X = RNG.standard_normal((32, 3, 16, 16)).astype(np.float32)


def weights(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def network() -> Graph:
    """A residual block with a projection, a PReLU, a SiLU, pools, a concat and a linear layer."""
    b = GraphBuilder("net", FLOAT)
    pad = {"pad": (1, 1, 1, 1)}
    x = b.input("x", TensorType((BATCH, 3, 16, 16), "f32"))
    c1 = b.add("conv2d", [x], name="c1", consts={"w": weights(16, 3, 3, 3), "b": weights(16, 1).ravel()}, attrs=pad)
    r1 = b.add("clip", [c1], name="r1", attrs={"lo": 0.0})
    c2 = b.add("conv2d", [r1], name="c2", consts={"w": weights(16, 16, 3, 3), "b": weights(16, 1).ravel()}, attrs=pad)
    c3 = b.add("conv2d", [r1], name="c3", consts={"w": weights(16, 16, 1, 1)})
    r2 = b.add("clip", [b.add("add", [c2, c3], name="sum")], name="r2", attrs={"lo": 0.0})
    c4 = b.add("conv2d", [r2], name="c4", consts={"w": weights(16, 16, 3, 3)}, attrs=pad)
    s2 = b.add("sub", [r2, c4], name="s2")
    p = b.add("prelu", [s2], name="p", consts={"slope": np.full((16, 1, 1), 0.1, np.float32)})
    u = b.add("unary", [p], name="u", attrs={"expr": "(mul x (sigmoid x))"})
    m = b.add("max_pool", [u], name="m", attrs={"kernel": (2, 2), "stride": (2, 2)})
    cc = b.add("concat", [m, m], name="cc", attrs={"axis": 1})
    window = {"kernel": (3, 3), "stride": (2, 2), "pad": (1, 1, 1, 1), "count_pad": 0}
    g = b.add("reduce_mean", [b.add("avg_pool", [cc], name="ap", attrs=window)], name="g",
              attrs={"axes": (2, 3), "keepdims": 0})  # fmt: skip
    y = b.add("linear", [g], name="fc", consts={"w": weights(10, 32), "b": weights(10, 1).ravel()})
    b.output("y", y)
    return b.build()


GRAPH = network()
STRUCTURE = Structure(GRAPH)
VALUES = float_exec.run(GRAPH, {"x": X}, keep=list(STRUCTURE.group_of))


def min_max() -> dict[str, Range]:
    found = {}
    for group, members in STRUCTURE.members.items():
        lo, hi = (float(f([f(VALUES[v]) for v in members])) for f in (np.min, np.max))
        found[group] = Range(lo, hi, dict.fromkeys(range(4, 9), (lo, hi)), {}, len(X))
    return found


def integers(w: int, a: int) -> Graph:
    return Integerizer(GRAPH, min_max(), dict.fromkeys(STRUCTURE.layers, BitChoice(w, a))).run()


@pytest.mark.parametrize(("w", "a", "tolerance"), [(8, 8, 0.02), (8, 6, 0.06), (6, 8, 0.06), (4, 4, 0.5)])
def test_error_shrinks_with_bits(w: int, a: int, tolerance: float) -> None:
    graph = integers(w, a)
    verify(graph)
    ranges.prove(graph)
    y = interp.run(graph, {"x": quantize(X, graph.inputs[0].grid)})["y"]  # type: ignore[arg-type]
    real = dequantize(y, graph.outputs[0].grid)  # type: ignore[arg-type]
    assert np.abs(real - VALUES["y"]).max() <= tolerance * np.abs(VALUES["y"]).max()


def test_the_later_convolution_takes_the_addition() -> None:
    assert [node.name for node in STRUCTURE.regions["r2"].nodes] == ["c3", "sum", "r2"]
    assert integers(8, 8).by_name["r2"].inputs == ("c3:acc", "c2")


def test_a_shared_value_stays_at_eight_bits_and_layers_read_a_copy() -> None:
    graph = integers(4, 4)
    assert graph.type_of("r2").dtype == "u8"
    assert graph.by_name["c4:acc"].inputs == ("r2:u4",)
    assert graph.type_of("r1").dtype == "u4"  # only layers read it


def test_ties() -> None:
    assert STRUCTURE.tied()["r1"] == ("c2", "c3")


def test_outputs_are_wide_and_keep_the_argmax() -> None:
    graph = integers(8, 8)
    assert graph.outputs[0].grid is not None
    assert graph.outputs[0].grid.dtype == "i32"
    y = interp.run(graph, {"x": quantize(X, graph.inputs[0].grid)})["y"]  # type: ignore[arg-type]
    assert (y.argmax(1) == VALUES["y"].argmax(1)).mean() >= 0.9


def test_a_channel_of_zeros_with_a_bias_keeps_its_bias() -> None:
    b = GraphBuilder("zero", FLOAT)
    x = b.input("x", TensorType((BATCH, 3, 16, 16), "f32"))
    w = weights(4, 3, 1, 1)
    w[2] = 0
    c = b.add("conv2d", [x], name="c", consts={"w": w, "b": np.array([0, 0, 5, 0], np.float32)})
    b.output("y", c)
    graph = Integerizer(b.build(), {"x": min_max()["x"]}, {"c": BitChoice(4, 8)}).run()
    y = interp.run(graph, {"x": quantize(X, graph.inputs[0].grid)})["y"]  # type: ignore[arg-type]
    real = dequantize(y, graph.outputs[0].grid)  # type: ignore[arg-type]
    assert np.abs(real[:, 2] - 5).max() < 1e-3
