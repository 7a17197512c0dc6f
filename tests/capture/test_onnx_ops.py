"""Every supported ONNX operator, one node each, against onnxruntime."""

import numpy as np
import onnx
import pytest
from onnx import helper

from qcompile.capture import capture
from qcompile.capture.check import check_capture
from tests.capture.onnx_nets import ints, model, one, weights

f32 = np.float32
CASES: dict[str, onnx.ModelProto] = {
    "conv": one("Conv", weights(6, 4, 3, 3), weights(6), pads=[1, 1, 1, 1]),
    "conv without bias, strided": one("Conv", weights(6, 4, 3, 3), strides=[2, 3]),
    "conv, asymmetric pads": one("Conv", weights(6, 4, 3, 3), pads=[0, 1, 2, 3]),
    "conv, dilated": one("Conv", weights(6, 4, 3, 3), dilations=[2, 1]),
    "conv, grouped": one("Conv", weights(6, 2, 3, 3), group=2),
    "conv, depthwise": one("Conv", weights(8, 1, 3, 3), group=4),
    "conv, same upper": one("Conv", weights(6, 4, 4, 3), auto_pad="SAME_UPPER", strides=[2, 2]),
    "conv, same lower": one("Conv", weights(6, 4, 4, 3), auto_pad="SAME_LOWER", strides=[2, 2]),
    "conv, valid": one("Conv", weights(6, 4, 4, 3), auto_pad="VALID"),
    "conv, 1-d": one("Conv", weights(6, 4, 3), weights(6), pads=[1, 0], shape=("N", 4, 9)),
    "gemm": one("Gemm", weights(5, 7), weights(7), shape=("N", 5)),
    "gemm, transB, alpha, beta": one(
        "Gemm", weights(7, 5), weights(1, 7), shape=("N", 5), transB=1, alpha=0.5, beta=2.0
    ),
    "gemm, scalar bias": one("Gemm", weights(5, 7), np.array(0.5, f32), shape=("N", 5)),
    "matmul": one("MatMul", weights(5, 7), shape=("N", 5)),
    "matmul over rows": one("MatMul", weights(5, 7), shape=("N", 3, 5)),
    "matmul over images": one("MatMul", weights(8, 3)),
    "matmul from the left": one("MatMul", weights(3, 9), first=False),
    "batch norm": one("BatchNormalization", weights(4), weights(4), weights(4), weights(4, low=0.5), epsilon=1e-3),
    "batch norm of a vector": one(
        "BatchNormalization", weights(5), weights(5), weights(5), weights(5, low=0.5), shape=("N", 5)
    ),
    "add constant": one("Add", weights(4, 1, 1)),
    "add constant of full rank": one("Add", weights(1, 4, 9, 8)),
    "add scalar": one("Add", np.array(0.5, f32)),
    "constant minus": one("Sub", weights(8), first=False),
    "minus constant": one("Sub", weights(9, 1)),
    "mul constant": one("Mul", weights(1, 4, 1, 1)),
    "div by constant": one("Div", weights(4, 1, 1, low=0.5)),
    "constant divided": one("Div", np.array(0.5, f32), first=False, shape=(1, 4)),
    "max with constant": one("Max", np.array(0.1, f32)),
    "min with constants": one("Min", np.array(0.5, f32), np.array(0.25, f32)),
    "relu": one("Relu"),
    "clip": one("Clip", np.array(-0.25, f32), np.array(0.5, f32)),
    "clip above": one("Clip", None, np.array(0.5, f32)),
    "clip without bounds": one("Clip"),
    "leaky relu": one("LeakyRelu", alpha=0.2),
    "prelu": one("PRelu", weights(4, 1, 1)),
    "prelu, scalar": one("PRelu", np.array([0.3], f32)),
    "softmax": one("Softmax", shape=("N", 7)),
    "softmax of channels": one("Softmax", axis=1),
    "max pool": one("MaxPool", kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1]),
    "max pool, ceil": one("MaxPool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    "max pool, ceil, window behind the end": one(
        "MaxPool", kernel_shape=[2, 2], strides=[3, 3], pads=[1, 1, 1, 1], ceil_mode=1, opset=22
    ),
    "max pool, dilated": one("MaxPool", kernel_shape=[3, 3], dilations=[2, 2]),
    "max pool, 1-d": one("MaxPool", kernel_shape=[3], shape=("N", 4, 9)),
    "max pool, same": one("MaxPool", kernel_shape=[2, 2], auto_pad="SAME_UPPER"),
    "average pool": one("AveragePool", kernel_shape=[3, 2], strides=[2, 2]),
    "average pool, padded": one("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    "average pool, padding counts": one("AveragePool", kernel_shape=[3, 3], pads=[1, 0, 1, 1], count_include_pad=1),
    "average pool, ceil": one("AveragePool", kernel_shape=[2, 3], strides=[2, 2], ceil_mode=1),
    "global average pool": one("GlobalAveragePool"),
    "global max pool": one("GlobalMaxPool"),
    "mean, axes attribute": one("ReduceMean", axes=[2, 3], keepdims=0, opset=17),
    "mean, axes input": one("ReduceMean", ints(-1), keepdims=1),
    "sum": one("ReduceSum", ints(1), keepdims=0),
    "max over the image": one("ReduceMax", ints(2, 3), keepdims=0),
    "pad": one("Pad", ints(0, 0, 1, 2, 0, 1, 0, 3), np.array(0.5, f32)),
    "pad, negative": one("Pad", ints(0, 0, -1, 2, 0, 0, 0, -3)),
    "pad, axes": one("Pad", ints(1, 2), None, ints(3)),
    "flatten": one("Flatten"),
    "reshape, -1": one("Reshape", ints(0, -1)),
    "reshape, batch -1": one("Reshape", ints(-1, 8, 9, 4)),
    "reshape, fixed batch": one("Reshape", ints(1, 2, 2, 72), shape=(1, 4, 9, 8)),
    "squeeze": one("Squeeze", ints(2), shape=("N", 4, 1, 8)),
    "unsqueeze": one("Unsqueeze", ints(1, -1)),
    "transpose": one("Transpose", perm=[0, 2, 3, 1]),
    "slice": one("Slice", ints(1, -3), ints(9, 100), ints(2, 3), ints(2, 1)),
    "gather, one index": one("Gather", np.array(2), axis=1),
    "gather, strided": one("Gather", ints(0, 2, 4), axis=2),
    "gather, rows in any order": one("Gather", ints(5, 0, 0, 3), axis=2),
    "gather, channels in any order": one("Gather", ints(3, 1, 2, 0), axis=1),
    "gather, negative": one("Gather", ints(-1), axis=3),
    "expand": one("Expand", ints(1, 4, 3, 5), shape=("N", 4, 1, 1)),
    "resize by scales": one(
        "Resize",
        None,
        np.array([1, 1, 2, 2], f32),
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    ),
    "resize to sizes": one("Resize", None, None, ints(1, 4, 13, 5), mode="nearest", shape=(1, 4, 9, 8)),
    "resize, align corners": one(
        "Resize",
        None,
        np.array([1, 1, 1.5, 2.5], f32),
        mode="nearest",
        coordinate_transformation_mode="align_corners",
        nearest_mode="round_prefer_ceil",
    ),
    "resize, half pixel, ceil": one(
        "Resize",
        None,
        np.array([1, 1, 0.5, 2.5], f32),
        mode="nearest",
        coordinate_transformation_mode="half_pixel",
        nearest_mode="ceil",
    ),
    "resize of one pixel, linear": one(
        "Resize", None, np.array([1, 1, 7, 5], f32), mode="linear", shape=("N", 4, 1, 1)
    ),
    "identity": one("Identity"),
    "dropout": one("Dropout"),
    "cast to float": one("Cast", to=1),
    "space to depth": one("SpaceToDepth", blocksize=2, shape=("N", 4, 8, 6)),
    "depth to space": one("DepthToSpace", blocksize=2),
    "depth to space, crd": one("DepthToSpace", blocksize=2, mode="CRD"),
    **{
        op: one(op)
        for op in (
            "Neg",
            "Abs",
            "Exp",
            "Sin",
            "Cos",
            "Atan",
            "Tanh",
            "Erf",
            "Sigmoid",
            "Softplus",
            "Softsign",
            "Floor",
            "Ceil",
            "Round",
            "Sign",
            "HardSwish",
            "HardSigmoid",
            "Elu",
            "Selu",
            "Celu",
            "Mish",
        )
    },
    "gelu": one("Gelu", opset=20),
    "gelu, tanh": one("Gelu", opset=20, approximate="tanh"),
    "square": one("Pow", np.array(2, f32)),
    "cube": one("Pow", np.array(3, f32)),
    "power of a constant": one("Pow", np.array(4, f32)),
}


@pytest.mark.parametrize("name", CASES)
def test_operator_equals_onnxruntime(name: str) -> None:
    source = CASES[name]
    assert check_capture(capture(source), source) < 1e-5


def two(op: str, shape: tuple[int | str, ...] = ("N", 4, 9, 8), **attrs: object) -> onnx.ModelProto:
    """An operator on the input's relu and tanh."""
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Tanh", ["x"], ["b"])]
    return model([*nodes, helper.make_node(op, ["a", "b"], ["y"], **attrs)], {}, shape=shape)


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Sum"])
def test_two_values(op: str) -> None:
    source = two(op)
    assert check_capture(capture(source), source) < 1e-5


def test_concat() -> None:
    source = two("Concat", axis=-2)
    assert check_capture(capture(source), source) < 1e-6


def test_division_of_values() -> None:
    nodes = [helper.make_node("Exp", ["x"], ["b"]), helper.make_node("Div", ["x", "b"], ["y"])]
    source = model(nodes, {})
    assert check_capture(capture(source), source) < 1e-5


def test_values_of_different_rank_align() -> None:
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["p"]),
        helper.make_node("Squeeze", ["p", "batch"], ["s"]),
        helper.make_node("Mul", ["x", "s"], ["y"]),
    ]
    source = model(nodes, {"batch": ints(0)}, shape=(1, 4, 9, 8))
    assert check_capture(capture(source), source) < 1e-5


@pytest.mark.parametrize("given", [True, False])
def test_split(given: bool) -> None:
    inputs = ["x", "sizes"] if given else ["x"]
    attrs = {} if given else {"num_outputs": 2}
    nodes = [
        helper.make_node("Split", inputs, ["a", "b"], axis=2, **attrs),
        helper.make_node("Relu", ["a"], ["y"]),
        helper.make_node("Tanh", ["b"], ["z"]),
    ]
    source = model(nodes, {"sizes": ints(2, 7)} if given else {}, outputs=("y", "z"))
    assert check_capture(capture(source), source) < 1e-6


def test_shapes_computed_from_the_input_fold() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Unsqueeze", ["n", "axes"], ["n1"]),
        helper.make_node("Concat", ["n1", "rest"], ["shape"], axis=0),
        helper.make_node("Reshape", ["x", "shape"], ["y"]),
    ]
    source = model(nodes, {"zero": np.array(0), "axes": ints(0), "rest": ints(36, -1)})
    graph = capture(source)
    assert check_capture(graph, source) == 0
    assert [node.op for node in graph.nodes] == ["reshape"]


def test_channel_shuffle_that_folds_a_batch_of_one_into_the_channels() -> None:
    nodes = [
        helper.make_node("Reshape", ["x", "to3"], ["a"]),
        helper.make_node("Transpose", ["a"], ["b"], perm=[1, 0, 2]),
        helper.make_node("Reshape", ["b", "to5"], ["c"]),
        helper.make_node("Gather", ["c", "one"], ["y"], axis=0),
    ]
    constants = {"to3": ints(3, 2, 20), "to5": ints(2, -1, 3, 4, 5), "one": np.array(1)}
    source = model(nodes, constants, shape=(1, 6, 4, 5))
    assert check_capture(capture(source), source) == 0


def test_weights_computed_from_constants_keep_their_module() -> None:
    nodes = [
        helper.make_node("Transpose", ["block.fc.weight"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["m"], name="MatMul_7"),
        helper.make_node("Add", ["m", "block.fc.bias"], ["y"], name="Add_8"),
    ]
    held = {"block.fc.weight": weights(7, 5), "block.fc.bias": weights(7)}
    source = model(nodes, held, shape=("N", 5))
    graph = capture(source)
    assert [node.name for node in graph.nodes] == ["block.fc", "Add_8"]
    assert check_capture(graph, source) < 1e-6


def test_local_functions_are_inlined() -> None:
    body = helper.make_function(
        "own",
        "Twice",
        ["a"],
        ["b"],
        [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 18)],
    )
    source = model([helper.make_node("Twice", ["x"], ["y"], domain="own")], {})
    source.opset_import.append(helper.make_opsetid("own", 1))
    source.functions.append(body)
    assert check_capture(capture(source), source) == 0
