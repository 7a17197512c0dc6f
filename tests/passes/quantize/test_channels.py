"""Sets of channels: what hands a factor on, what ties channels, what stops them; the function stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from passes.quantize.channels import channels_of, scaled
from qcompile.exec import float_exec
from qcompile.ir import Array, Graph, GraphBuilder, TensorType

C = 4
ADDED = {"pads": (1, 0, 0, 1, 0, 0)}


def weights(*shape: int, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng([seed, *shape])
    return {"w": rng.normal(size=shape).astype(np.float32), "b": rng.normal(size=shape[0]).astype(np.float32)}


def conv(b: GraphBuilder, value: str, name: str, outputs: int, inputs: int, **attrs: Any) -> str:
    return b.add("conv2d", [value], name=name, consts=weights(outputs, inputs, 1, 1), attrs=attrs)


def built(body: Callable[[GraphBuilder, str], tuple[str, int]]) -> Graph:
    """A convolution of 4 channels "a", what `body` adds to it (value and channels), and a convolution at the end."""
    b = GraphBuilder("net", "float")
    b.input("x", TensorType((-1, 3, 4, 4), "f32"))
    value, channels = body(b, conv(b, "x", "a", C, 3))
    b.output("y", conv(b, value, "end", 2, channels))
    return b.build()


def relu(b: GraphBuilder, value: str) -> str:
    return b.add("clip", [value], name=f"{value}.relu", attrs={"lo": 0.0})


def branches(b: GraphBuilder, value: str) -> tuple[str, int]:
    other = relu(b, conv(b, value, "other", 3, C))
    return b.add("concat", [value, other], name="cat", attrs={"axis": 1}), C + 3


def chain(b: GraphBuilder, value: str) -> tuple[str, int]:
    first = b.add("add", [conv(b, relu(b, value), "p", C, C), value], name="s1")
    return b.add("add", [first, conv(b, relu(b, first), "q", C, C)], name="s2"), C


def shortcut(b: GraphBuilder, value: str) -> tuple[str, int]:
    """What option A of ResNets does: every second pixel, and new channels of zeros around the old ones."""
    steps = {"starts": (0, 0, 0), "ends": (C, 3, 3), "steps": (1, 2, 2)}
    half = b.add("slice", [value], name="half", attrs=steps)
    wide = b.add("pad", [half], name="wide", attrs=ADDED)
    return b.add("add", [wide, conv(b, value, "down", C + 2, C, stride=(2, 2))], name="sum"), C + 2


def pooled(b: GraphBuilder, value: str) -> tuple[str, int]:
    value = b.add("prelu", [value], name="slope", consts={"slope": np.full((1, 1, 1), 0.1, np.float32)})
    value = b.add("max_pool", [value], name="largest", attrs={"kernel": (2, 2), "stride": (1, 1)})
    value = b.add("avg_pool", [value], name="average", attrs={"kernel": (2, 2)})
    value = conv(b, value, "dw", C, 1, groups=C)
    return conv(b, relu(b, value), "grouped", C, C // 2, groups=2), C


def flattened(b: GraphBuilder, value: str) -> tuple[str, int]:
    value = b.add("reshape", [value], name="flat", attrs={"shape": (-1, C * 16)})
    value = b.add("linear", [value], name="dense", consts=weights(6, C * 16))
    return b.add("reshape", [value], name="back", attrs={"shape": (-1, 6, 1, 1)}), 6


@pytest.mark.parametrize("body", [branches, chain, shortcut, pooled, flattened])
def test_any_factors_of_free_sets_leave_the_function(
    body: Callable[[GraphBuilder, str], tuple[str, int]],
) -> None:
    graph = built(body)
    channels = channels_of(graph)
    rng = np.random.default_rng(1)
    factors = np.where(channels.free, 2.0 ** rng.uniform(-3, 3, size=len(channels.free)), 1.0)
    x = rng.normal(size=(5, 3, 4, 4)).astype(np.float32)
    after = scaled(graph, channels, factors, "test")
    before, now = float_exec.run(graph, {"x": x})["y"], float_exec.run(after, {"x": x})["y"]
    np.testing.assert_allclose(now, before, rtol=0, atol=1e-5 * np.abs(before).max())
    assert channels.free[channels.sets["a"]].all()
    assert not np.array_equal(after.const(after.by_name["end"], "w"), graph.const(graph.by_name["end"], "w"))


def test_a_concat_keeps_the_sets_of_its_branches() -> None:
    sets = channels_of(built(branches)).sets
    np.testing.assert_array_equal(sets["cat"], [*sets["a"], *sets["other.relu"]])
    assert len(set(sets["cat"].tolist())) == C + 3


def test_a_residual_chain_is_one() -> None:
    sets = channels_of(built(chain)).sets
    for value in ("p", "s1", "q", "s2"):
        np.testing.assert_array_equal(sets[value], sets["a"])


def test_channels_are_cut_and_added_where_they_lie() -> None:
    sets = channels_of(built(shortcut)).sets
    np.testing.assert_array_equal(sets["sum"][1:-1], sets["a"])
    np.testing.assert_array_equal(sets["sum"], sets["down"])
    np.testing.assert_array_equal(channels_of(built(flattened)).sets["flat"], np.repeat(np.arange(3, 3 + C), 16))


@pytest.mark.parametrize(
    "stop",
    [
        lambda b, value: b.add("unary", [value], name="stop", attrs={"expr": "sigmoid(x)"}),
        lambda b, value: b.add("mul", [value, relu(b, value)], name="stop"),
        lambda b, value: b.add("pad", [value], name="stop", attrs={"pads": (0, 1, 1, 0, 1, 1), "value": 1.0}),
        lambda b, value: b.add("clip", [value], name="stop", attrs={"lo": -1.0, "hi": 1.0}),
        lambda b, value: b.add("transpose", [value], name="stop", attrs={"perm": (0, 2, 1, 3)}),
    ],
)
def test_others_stop_a_factor_on_both_sides(stop: Callable[[GraphBuilder, str], str]) -> None:
    graph = built(lambda b, value: (stop(b, value), C))
    channels = channels_of(graph)
    assert not channels.free.any()
    assert scaled(graph, channels, np.ones(len(channels.free)), "test").nodes == graph.nodes


def test_inputs_and_outputs_keep_their_scale_and_a_bound_is_noted() -> None:
    graph = built(lambda b, value: (b.add("clip", [value], name="six", attrs={"lo": 0.0, "hi": 6.0}), C))
    channels = channels_of(graph)
    assert not channels.free[channels.sets["x"]].any()
    assert not channels.free[channels.sets["end"]].any()
    assert channels.bounds == {"six": 6.0}
