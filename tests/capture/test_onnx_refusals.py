"""What the ONNX capture refuses, and that it says all of it at once."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from qcompile.capture import capture
from qcompile.capture.check import check_capture
from qcompile.capture.onnx import capture_onnx, supported_ops
from qcompile.errors import CaptureError, UnsupportedOpError
from tests.capture.onnx_nets import ints, model, one, weights


def test_all_unsupported_nodes_are_listed_at_once() -> None:
    nodes = [
        helper.make_node("LayerNormalization", ["x", "s"], ["a"], name="norm"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "b"], ["c"], name="scores"),
        helper.make_node("Fancy", ["x"], ["d"], name="fancy", domain="com.other"),
        helper.make_node("Pad", ["x", "p"], ["e"], name="edge", mode="edge"),
        helper.make_node("Sum", ["c", "d", "e"], ["y"]),
    ]
    with pytest.raises(UnsupportedOpError) as caught:
        capture(model(nodes, {"s": weights(8), "p": ints(0, 0, 1, 1, 0, 0, 1, 1)}))
    text = str(caught.value)
    assert "4 nodes of the model cannot be captured" in text
    for part in (
        "LayerNormalization: the operator is not supported\n    at norm",
        "MatMul: a product of two computed values (attention) is not supported\n    at scores",
        "Fancy: the operator of the domain 'com.other' is not supported\n    at fancy",
        "Pad: the mode 'edge'; only padding with a constant is supported\n    at edge",
        "supported operators: Abs, Add, ",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (one("Resize", None, np.array([1, 1, 2, 2], np.float32), mode="linear"), "only nearest is supported"),
        (one("Slice", ints(-1), ints(-9), ints(2), ints(-1)), "reverses the order"),
        (one("Transpose", perm=[1, 0, 2, 3]), "does not have the batch first"),
        (one("Softmax", axis=0), "across the samples"),
        (one("ReduceMean", ints(0, 1)), "across the samples"),
        (one("Add", weights(1, 1, 1, 5), shape=("N", 5)), "moves the batch"),
        (one("Div", np.array(0, np.float32)), "division by the constant 0"),
        (one("MaxPool", kernel_shape=[20, 3]), "does not fit"),
        (one("Conv", weights(6, 3, 3, 3)), "does not fit"),
        (one("Conv", weights(6, 4, 3, 3, 3), shape=("N", 4, 5, 5, 5)), "two spatial dimensions"),
        (one("Mul", weights(1, 4, 9, 8), shape=("N", 1, 9, 8)), "enlarges"),
        (one("Reshape", ints(0, 7)), "cannot reshape"),
        (one("Cast", to=TensorProto.INT64), "another type than float32"),
        (
            one(
                "AveragePool",
                kernel_shape=[3, 3],
                strides=[2, 2],
                pads=[1, 1, 1, 1],
                ceil_mode=1,
                count_include_pad=1,
                shape=("N", 4, 10, 10),
            ),
            "ceil_mode",
        ),
        (
            one("BatchNormalization", weights(4), weights(4), weights(4), weights(4, low=-2, high=-1)),
            "variance",
        ),
    ],
)
def test_unsupported_forms(source: onnx.ModelProto, reason: str) -> None:
    with pytest.raises(CaptureError, match=reason):
        check_capture(capture(source), source)


def test_open_dimensions_need_a_shape() -> None:
    source = one("Relu", shape=("N", 3, "h", "w"))
    with pytest.raises(CaptureError, match=r"dimension 2 of input 'x' is not fixed\n  hint: .*--shape x:1x3x224x224"):
        capture(source)
    graph = capture(source, shapes={"x": (1, 3, 5, 6)})
    assert graph.inputs[0].type.sample == (3, 5, 6)
    assert check_capture(graph, source) == 0


@pytest.mark.parametrize("shapes", [{"z": (1, 3, 5, 6)}, {"x": (1, 4, 5, 6)}, {"x": (1, 3, 5)}])
def test_shapes_that_do_not_fit(shapes: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(CaptureError, match=r"'[xz]'"):
        capture(one("Relu", shape=("N", 3, "h", "w")), shapes=shapes)


def test_fixed_batch_other_than_one() -> None:
    with pytest.raises(CaptureError, match="fixed first dimension 8; it must be the batch"):
        capture(one("Relu", shape=(8, 3, 4, 4)))


def test_integer_inputs() -> None:
    source = model(
        [helper.make_node("Gather", ["table", "x"], ["y"])], {"table": weights(9, 4)}, dtype=TensorProto.INT64
    )
    with pytest.raises(UnsupportedOpError, match="it holds INT64; inputs must be FLOAT"):
        capture(source)


def test_weights_that_are_not_finite() -> None:
    broken = weights(6, 4, 3, 3)
    broken[0, 0, 0, 0] = np.nan
    with pytest.raises(CaptureError, match="tensor 'c0' holds NaN or infinity"):
        capture(one("Conv", broken))


@pytest.mark.parametrize("opset", [12, 999])
def test_opsets(opset: int) -> None:
    with pytest.raises(CaptureError, match=f"opset {opset}; supported are 13 to"):
        capture(one("Relu", opset=opset))


def test_constants_that_explode() -> None:
    nodes = [
        helper.make_node("ConstantOfShape", ["size"], ["huge"], name="bomb"),
        helper.make_node("Add", ["x", "huge"], ["y"]),
    ]
    with pytest.raises(UnsupportedOpError, match="it would create a huge constant\n    at bomb"):
        capture(model(nodes, {"size": ints(1 << 20, 1 << 20)}))


def test_a_wrong_capture_is_found_and_located() -> None:
    good = model(
        [
            helper.make_node("Relu", ["x"], ["a"], name="first"),
            helper.make_node("Add", ["a", "c"], ["y"], name="second"),
        ],
        {"c": weights(4, 1, 1)},
    )
    bad = model(
        [
            helper.make_node("Relu", ["x"], ["a"], name="first"),
            helper.make_node("Sub", ["a", "c"], ["y"], name="second"),
        ],
        {"c": weights(4, 1, 1)},
    )
    with pytest.raises(CaptureError, match="the first value that differs is 'second'"):
        check_capture(capture(good), bad)


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"not a model at all", b"\x08\x09"])
def test_files_that_are_no_models(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(CaptureError, match=r"ONNX"):
        capture(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="there is no model file"):
        capture(tmp_path / "m.onnx")


@pytest.mark.parametrize("suffix", [".pt", ".pt2", ".pth", ".pkl"])
def test_pickles_are_never_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"m{suffix}"
    path.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(CaptureError, match="pickles or code"):
        capture(path)


def test_truncated_and_mutated_files_never_crash(tmp_path: Path) -> None:
    source = model(
        [
            helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
            helper.make_node("Reshape", ["p", "s"], ["f"]),
            helper.make_node("Gemm", ["f", "g"], ["y"], transB=1),
        ],
        {"w": weights(3, 4, 3, 3), "b": weights(3), "s": ints(0, -1), "g": weights(2, 48)},
    ).SerializeToString()
    rng = np.random.default_rng(0)
    path = tmp_path / "m.onnx"
    outcomes = {"read": 0, "refused": 0}
    for trial in range(400):
        data = bytearray(source)
        if trial % 4 == 0:
            data = data[: int(rng.integers(len(data)))]
        else:
            for _ in range(int(rng.integers(1, 4))):
                # The outline rather than the weights: half of the mutations hit the first bytes.
                at = int(rng.integers(min(len(data), 400) if trial % 2 else len(data)))
                data[at] = int(rng.integers(256))
        path.write_bytes(bytes(data))
        try:
            capture_onnx(path)
            outcomes["read"] += 1
        except CaptureError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 20


def test_supported_ops_is_sorted_and_complete() -> None:
    ops = supported_ops()
    assert list(ops) == sorted(set(ops))
    assert {"Conv", "Gemm", "Resize", "Softmax", "Constant"} <= set(ops)
