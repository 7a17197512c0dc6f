"""The NumPy and torch evaluators of float graphs agree, on every operator."""

from typing import Any

import numpy as np
import pytest
import torch

from qcompile.errors import GraphError
from qcompile.exec import float_exec
from qcompile.exec.torch_exec import TorchGraph, parts_of, samples_together
from qcompile.ir import FLOAT, INT, OPS, Graph, GraphBuilder, TensorType

RNG = np.random.default_rng(0)


def array(*shape: int) -> np.ndarray[Any, Any]:
    return RNG.uniform(-1, 1, shape).astype(np.float32)


def single(op: str, *, consts: dict[str, Any] | None = None, n: int = 1, **attrs: Any) -> Graph:
    """A graph of one node on inputs of 4x7x6."""
    builder = GraphBuilder("g", FLOAT)
    names = [builder.input(f"x{i}", TensorType((-1, 4, 7, 6), "f32")) for i in range(n)]
    builder.output("y", builder.add(op, names, name="node", consts=consts, attrs=attrs))
    return builder.build()


CASES = {
    "conv2d": single(
        "conv2d", consts={"w": array(6, 2, 3, 3), "b": array(6)}, groups=2, pad=(0, 1, 2, 0), stride=(2, 1)
    ),
    "conv2d depthwise": single("conv2d", consts={"w": array(8, 1, 3, 2)}, groups=4, dilation=(2, 1), pad=(1, 1, 1, 1)),
    "linear": single("linear", consts={"w": array(5, 6), "b": array(5)}),
    "batch_norm": single(
        "batch_norm",
        consts={"scale": array(4), "bias": array(4), "mean": array(4), "var": np.abs(array(4)) + 0.1},
    ),
    "affine": single("affine", consts={"scale": array(4, 1, 1), "shift": array(1, 1, 6)}),
    "add": single("add", n=2),
    "sub": single("sub", n=2),
    "mul": single("mul", n=2),
    "clip": single("clip", lo=-0.2, hi=0.4),
    "relu": single("clip", lo=0.0),
    "prelu": single("prelu", consts={"slope": array(4, 1, 1)}),
    "unary": single("unary", expr="(mul x (sigmoid x))"),
    "softmax": single("softmax", axis=1),
    "avg_pool": single("avg_pool", kernel=(3, 2), stride=(2, 2), pad=(1, 0, 1, 1)),
    "avg_pool uncounted": single("avg_pool", kernel=(3, 2), stride=(2, 2), pad=(1, 0, 2, 1), count_pad=0),
    "reduce_mean": single("reduce_mean", axes=(2, 3), keepdims=0),
    "max_pool": single("max_pool", kernel=(3, 2), stride=(2, 1), pad=(1, 0, 2, 1)),
    "max_pool wide padding": single("max_pool", kernel=(2, 2), pad=(1, 1, 1, 1), dilation=(2, 1)),
    "concat": single("concat", n=3, axis=2),
    "reshape": single("reshape", shape=(-1, 7, 24)),
    "transpose": single("transpose", perm=(0, 2, 3, 1)),
    "slice": single("slice", starts=(1, 0, 2), ends=(4, 7, 6), steps=(1, 3, 2)),
    "pad": single("pad", pads=(0, 1, 2, 1, 0, 3), value=0.5),
    "resize": single("resize", rows=(0, 0, 3, 6, 1), cols=(5, 4)),
}


def test_every_float_operator_is_covered() -> None:
    assert {name for name, op in OPS.items() if FLOAT in op.levels} <= {
        node.op for graph in CASES.values() for node in graph.nodes
    }


@pytest.mark.parametrize("name", CASES)
def test_numpy_and_torch_agree(name: str) -> None:
    graph = CASES[name]
    x = {port.name: array(3, *port.type.sample) for port in graph.inputs}
    expected = float_exec.run(graph, x)["y"]
    actual = TorchGraph(graph).run(x)["y"].numpy()
    assert expected.dtype == np.float32
    assert expected.shape == (3, *graph.type_of("node").sample)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def small() -> Graph:
    """conv2d, relu and a softmax that the host computes."""
    tail = GraphBuilder("t", FLOAT)
    tail.output(
        "p",
        tail.add("softmax", [tail.input("r", TensorType((-1, 3, 7, 6), "f32"))], name="s", attrs={"axis": 1}),
    )
    builder = GraphBuilder("g", FLOAT)
    x = builder.input("x", TensorType((-1, 4, 7, 6), "f32"))
    c = builder.add("conv2d", [x], name="c", consts={"w": array(3, 4, 1, 1)})
    builder.output("r", builder.add("clip", [c], name="r", attrs={"lo": 0.0}))
    return builder.build(tail=tail.build())


def test_the_tail_runs_where_asked() -> None:
    graph, x = small(), {"x": array(2, 4, 7, 6)}
    assert list(float_exec.run(graph, x)) == ["p"]
    assert list(float_exec.run(graph, x, with_tail=False)) == ["r"]
    assert list(TorchGraph(graph).run(x)) == ["r"]
    whole = TorchGraph(graph).run(x, with_tail=True)
    np.testing.assert_allclose(whole["p"].numpy(), float_exec.run(graph, x)["p"], atol=1e-6)


def test_values_can_be_kept() -> None:
    graph, x = small(), {"x": array(2, 4, 7, 6)}
    assert sorted(float_exec.run(graph, x, keep=["c", "s"])) == ["c", "p", "s"]
    assert sorted(TorchGraph(graph).run(x, keep=["x", "c"])) == ["c", "r", "x"]


def test_every_value_passes_the_hook() -> None:
    graph, seen = small(), []

    def hook(name: str, tensor: torch.Tensor) -> torch.Tensor:
        seen.append(name)
        return tensor * 0 if name == "c" else tensor

    result = TorchGraph(graph).run({"x": array(1, 4, 7, 6)}, quantize=hook)
    assert seen == ["x", "c", "r"]
    assert not result["r"].any()


def test_weights_can_be_replaced_and_differentiated_twice() -> None:
    runner = TorchGraph(small())
    w = runner.weights["c"].clone().requires_grad_()
    x = torch.from_numpy(array(2, 4, 7, 6))
    y = runner.run({"x": x}, weights={"c": w})["r"].square().sum()
    (grad,) = torch.autograd.grad(y, w, create_graph=True)
    (product,) = torch.autograd.grad(grad.sum(), w)
    assert grad.abs().sum() > 0
    assert product.abs().sum() > 0
    assert not runner.weights["c"].requires_grad


def test_only_float_graphs() -> None:
    graph = GraphBuilder("g", INT).build()
    with pytest.raises(GraphError, match="level int"):
        float_exec.run(graph, {})
    with pytest.raises(GraphError, match="level int"):
        TorchGraph(graph)


def test_a_missing_input_is_named() -> None:
    with pytest.raises(GraphError, match="input 'x' is missing"):
        float_exec.run(small(), {})


def test_large_values_run_a_few_samples_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = CASES["conv2d"]  # its output, 6·4·7 numbers of 4 bytes, is the largest value
    monkeypatch.setattr("qcompile.exec.torch_exec._HEAP_BYTES", 3 * 4 * graph.by_name["node"].type.numel + 1)
    assert samples_together(graph) == 3
    x = array(8, 4, 7, 6)
    parts = list(parts_of(graph, {"x0": x, "labels": np.arange(8)}))
    assert [set(part) for part in parts] == [{"x0"}] * 3
    assert [len(part["x0"]) for part in parts] == [3, 3, 2]
    np.testing.assert_array_equal(np.concatenate([part["x0"] for part in parts]), x)
    monkeypatch.setattr("qcompile.exec.torch_exec._HEAP_BYTES", 1)
    assert samples_together(graph) == 1
