"""Inputs from BatchNorm statistics: the planted unit and offset are found, and the statistics are met."""

from __future__ import annotations

import numpy as np
import pytest

from qcompile.exec import float_exec
from qcompile.exec.torch_distill import distill_inputs
from qcompile.ir import Graph, GraphBuilder, TensorType
from qcompile.synthetic import synthetic_data


def net(mean: float, deviation: float) -> Graph:
    """A convolution and a BatchNorm that remembers pictures of this mean and deviation."""
    w = np.abs(np.random.default_rng(0).normal(size=(4, 3, 1, 1))).astype(np.float32)
    share = w.sum(axis=(1, 2, 3))
    b = GraphBuilder("net", "float")
    x = b.input("x", TensorType((-1, 3, 16, 16), "f32"))
    h = b.add("conv2d", [x], name="c", consts={"w": w})
    consts = {
        "mean": (mean * share).astype(np.float32),
        "var": np.square(deviation * share * 0.97).astype(np.float32),
        "scale": np.ones(4, np.float32),
        "bias": np.zeros(4, np.float32),
    }
    b.output("y", b.add("batch_norm", [h], name="n", consts=consts, attrs={"eps": 1e-5}))
    return b.build()


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (128.0, 64.0), (0.5, 0.25)])
def test_the_unit_of_the_inputs_is_found(mean: float, deviation: float) -> None:
    graph = net(mean, deviation)
    batches, how = synthetic_data(graph, 0, 32)
    x = batches[0]["x"]
    assert "BatchNorm" in how and x.dtype == np.float32 and x.shape == (32, 3, 16, 16)
    assert abs(x.mean() - mean) < 0.3 * deviation and 0.7 < x.std() / deviation < 1.4
    y = float_exec.run(graph, {"x": x})["y"]
    assert np.abs(y.mean(axis=(0, 2, 3))).max() < 0.2 and np.abs(y.std(axis=(0, 2, 3)) - 1).max() < 0.2
    np.testing.assert_array_equal(x, synthetic_data(graph, 0, 32)[0][0]["x"])


def test_noise_has_a_falling_spectrum_and_unit_deviation() -> None:
    b = GraphBuilder("net", "float")
    x = b.input("x", TensorType((-1, 3, 32, 32), "f32"))
    b.output("y", b.add("clip", [x], name="r", attrs={"lo": 0.0}))
    batches, how = synthetic_data(b.build(), 0, 16)
    x = batches[0]["x"]
    assert "noise" in how and abs(x.std() - 1) < 1e-3
    power = np.square(np.abs(np.fft.rfft2(x))).mean(axis=(0, 1))[0]
    assert power[1] > 10 * power[4] > 100 * power[15]


def test_a_graph_without_batch_norm_is_refused() -> None:
    b = GraphBuilder("net", "float")
    x = b.input("x", TensorType((-1, 4), "f32"))
    b.output("y", b.add("clip", [x], name="r", attrs={"lo": 0.0}))
    with pytest.raises(ValueError, match="no BatchNorm"):
        distill_inputs(b.build(), [{"x": np.zeros((2, 4), np.float32)}])
