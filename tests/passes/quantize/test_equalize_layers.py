"""equalize-layers: the function stays, channels fill their tensor, and nothing else is touched."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from passes.quantize.equalize_layers import EqualizeLayers, channel_sizes, column_sizes
from qcompile.compiler import Compiler
from qcompile.errors import DataError, PassContractError
from qcompile.exec import float_exec
from qcompile.ir import Array, Graph, GraphBuilder, TensorType
from qcompile.pm.base import Batches, PassContext
from qcompile.target.model import Target
from targets.reference.backend import ReferenceBackend

TARGET = Target("none", "", "")
CHANNELS = 6


def network(clip: tuple[float, float] | None, seed: int = 0, twice: bool = False) -> Graph:
    """conv, clip, depthwise, clip, 1x1; `twice`: an addition reads what the depthwise convolution reads."""
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(CHANNELS, 3, 1, 1)) * 10 ** rng.uniform(-1.5, 0, size=(CHANNELS, 1, 1, 1))
    b = GraphBuilder("net", "float")
    b.input("x", TensorType((-1, 3, 5, 5), "f32"))
    pad = {"pad": (1, 1, 1, 1), "groups": CHANNELS}

    def weights(array: Array) -> dict[str, Array]:
        return {"w": array.astype(np.float32), "b": rng.normal(size=len(array)).astype(np.float32) * 0.01}

    value = b.add("conv2d", ["x"], name="expand", consts=weights(w))
    if clip is not None:
        value = b.add("clip", [value], name="act", attrs={"lo": clip[0], "hi": clip[1]})
    read = value
    value = b.add("conv2d", [value], name="dw", consts=weights(rng.normal(size=(CHANNELS, 1, 3, 3))), attrs=pad)
    value = b.add("clip", [value], name="act2", attrs={"lo": 0.0})
    if twice:
        value = b.add("add", [value, read], name="sum")
    value = b.add("conv2d", [value], name="project", consts=weights(rng.normal(size=(4, CHANNELS, 1, 1))))
    b.output("y", value)
    return b.build()


def samples(scale: float = 1.0, seed: int = 1) -> Array:
    return np.asarray(scale * np.random.default_rng(seed).normal(size=(16, 3, 5, 5)), np.float32)


def stream_of(x: Array) -> Batches:
    def stream() -> Iterator[dict[str, Array]]:
        for start in range(0, len(x), 4):
            yield {"x": x[start : start + 4]}

    return stream


def context(x: Array | None) -> PassContext:
    return PassContext(TARGET, calibration=None if x is None else stream_of(x))


@pytest.mark.parametrize("clip", [None, (0.0, np.inf), (0.0, 6.0), (0.0, 0.5)])
def test_the_function_stays_and_channels_fill_their_tensor(clip: tuple[float, float] | None) -> None:
    graph, x = network(clip), samples()
    ctx = context(x)
    after = EqualizeLayers().run(graph, ctx).graph
    before, now = float_exec.run(graph, {"x": x})["y"], float_exec.run(after, {"x": x})["y"]
    np.testing.assert_allclose(now, before, rtol=0, atol=1e-5 * np.abs(before).max())
    assert ctx.calibration is not None
    value = "expand" if clip is None else "act"
    old = channel_sizes(graph, {value}, ctx.calibration)[value].largest
    new = channel_sizes(after, {value}, ctx.calibration)[value].largest
    assert old.min() < 0.5 * old.max()  # or there is nothing to see
    np.testing.assert_allclose(new, old.max(), rtol=1e-5)


def test_no_factor_is_larger_than_allowed() -> None:
    graph, ctx = network((0.0, np.inf)), context(samples())
    after = EqualizeLayers(most=1.5, weights=3.0).run(graph, ctx).graph
    columns = graph.const(graph.by_name["project"], "w") / after.const(after.by_name["project"], "w")
    assert columns.max() == pytest.approx(1.5) and columns.min() == pytest.approx(1 / 1.5)
    factor = after.const(after.by_name["expand"], "w") / graph.const(graph.by_name["expand"], "w")
    assert factor.max() == pytest.approx(1.5) and factor.min() == pytest.approx(1.0)


def test_what_an_addition_reads_too_is_scaled_like_the_rest_of_the_sum() -> None:
    graph, x = network((0.0, np.inf), twice=True), samples()
    after = EqualizeLayers().run(graph, context(x)).graph
    before, now = float_exec.run(graph, {"x": x})["y"], float_exec.run(after, {"x": x})["y"]
    np.testing.assert_allclose(now, before, rtol=0, atol=1e-5 * np.abs(before).max())
    depthwise = [g.const(g.by_name["dw"], "w") for g in (graph, after)]
    np.testing.assert_allclose(*depthwise, rtol=1e-6)  # the same factor in front of it and behind it
    assert not np.array_equal(after.const(after.by_name["expand"], "w"), graph.const(graph.by_name["expand"], "w"))


def test_columns_of_one_row_become_alike() -> None:
    rng = np.random.default_rng(0)
    w = rng.normal(size=(1, CHANNELS, 1, 1)) * 10 ** rng.uniform(-1, 0, size=(1, CHANNELS, 1, 1))
    b = GraphBuilder("net", "float")
    b.input("x", TensorType((-1, 3, 5, 5), "f32"))
    b.add("conv2d", ["x"], name="first", consts={"w": rng.normal(size=(CHANNELS, 3, 1, 1)).astype(np.float32)})
    b.add("clip", ["first"], name="act", attrs={"lo": 0.0})
    b.output("y", b.add("conv2d", ["act"], name="last", consts={"w": w.astype(np.float32)}))
    graph = b.build()
    after = EqualizeLayers(weights=1.0, activations=0.0).run(graph, context(samples())).graph
    assert column_sizes(graph, {"act"})["act"].std() > 0.5
    np.testing.assert_allclose(column_sizes(after, {"act"})["act"], 1.0, rtol=1e-5)


def test_a_dead_channel_keeps_its_scale() -> None:
    graph = network((0.0, np.inf))
    weights = graph.const(graph.by_name["expand"], "w")
    weights.setflags(write=True)
    weights[2] = 0
    graph.const(graph.by_name["expand"], "b").setflags(write=True)
    graph.const(graph.by_name["expand"], "b")[2] = -1
    after = EqualizeLayers().run(graph, context(samples())).graph
    assert after.const(after.by_name["expand"], "b")[2] == -1
    assert np.isfinite(after.const(after.by_name["expand"], "b")).all()


def test_it_needs_samples() -> None:
    with pytest.raises(PassContractError):
        EqualizeLayers().run(network(None), context(None))
    with pytest.raises(DataError):
        EqualizeLayers().run(network(None), context(samples()[:0]))


def test_it_is_left_out_where_asked() -> None:
    def names(equalize: bool) -> set[str]:
        x = samples()
        compiler = Compiler(
            network((0.0, np.inf)),
            TARGET,
            ReferenceBackend(TARGET),
            stream_of(x),
            stream_of(x),
            None,
            equalize=equalize,
        )
        compiler.prepare(analyse=False)
        return {name for node in compiler.graph.nodes for name in node.origin}

    assert "equalize-layers" in names(True)
    assert "equalize-layers" not in names(False)
