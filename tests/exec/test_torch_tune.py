"""DiscQuant end to end: integers of the grid, closer outputs, the same every time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qcompile.exec.tensors import to_tensor
from qcompile.exec.torch_exec import TorchGraph
from qcompile.exec.torch_loss import output_losses, total_loss
from qcompile.exec.torch_teacher import Teacher
from qcompile.exec.torch_tune import LayerIntegers, Schedule, Tuner
from qcompile.ir import Graph, GraphBuilder, TensorType


def net() -> Graph:
    rng = np.random.default_rng(0)

    def const(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    b = GraphBuilder("net", "float")
    x = b.input("x", TensorType((-1, 12), "f32"))
    h = b.add("linear", [x], name="one", consts={"w": const(16, 12), "b": const(16)})
    h = b.add("clip", [h], name="relu", attrs={"lo": 0.0})
    b.output("y", b.add("linear", [h], name="two", consts={"w": const(5, 16)}))
    return b.build()


def start(graph: Graph, top: int) -> dict[str, LayerIntegers]:
    """Rounded to nearest."""
    found = {}
    for name in ("one", "two"):
        w = graph.const(graph.by_name[name], "w").astype(np.float64)
        scale = np.abs(w).max(axis=1) / top
        b = graph.const_or(graph.by_name[name], "b")
        q = np.rint(w / scale[:, None]).astype(np.int8)
        found[name] = LayerIntegers(q, scale, np.zeros(len(w)) if b is None else b.astype(np.float64), -top, top, w)
    return found


def test_outputs_come_closer_and_the_result_is_on_the_grid() -> None:
    graph, top = net(), 3
    first = start(graph, top)
    x = np.random.default_rng(1).normal(size=(256, 12)).astype(np.float32)
    losses = output_losses(graph)

    def tuned(epochs: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        teacher = Teacher(graph, [{"x": x[:100]}, {"x": x[100:]}], lambda _, v: v)
        return Tuner(teacher, first).run(Schedule(epochs), 0)

    def loss(result: dict[str, tuple[np.ndarray, np.ndarray]]) -> float:
        runner = TorchGraph(graph)
        weights = {n: to_tensor(q * first[n].scale[:, None]) for n, (q, _) in result.items()}
        biases = {n: to_tensor(b) for n, (_, b) in result.items()}
        out = runner.run({"x": x}, weights=weights, biases=biases)
        return float(total_loss(losses, out, runner.run({"x": x})).mean())

    found = tuned(80)
    for name, (q, _) in found.items():
        assert q.dtype == np.int8 and np.abs(q).max() <= top
        assert (np.abs(q - first[name].aim / first[name].scale[:, None]) <= 1 + 1e-6).all()
    again = tuned(80)
    for name, (q, b) in found.items():
        np.testing.assert_array_equal(q, again[name][0])
        np.testing.assert_array_equal(b, again[name][1])
    untouched = tuned(0)
    np.testing.assert_array_equal(untouched["one"][0], first["one"].q)
    assert loss(found) < 0.9 * loss(untouched), (loss(found), loss(untouched))


def test_no_integer_leaves_the_range() -> None:
    """Planted: the real weights to be stood for lie beyond both ends."""
    graph, top = net(), 3
    beyond = {name: replace(one, aim=one.aim * 1.3) for name, one in start(graph, top).items()}
    x = np.random.default_rng(1).normal(size=(64, 12)).astype(np.float32)
    found = Tuner(Teacher(graph, [{"x": x}], lambda _, v: v), beyond).run(Schedule(80), 0)
    assert any((found[name][0] != one.q).any() for name, one in beyond.items())
    for name, (q, _) in found.items():
        assert np.abs(q).max() <= top, name
