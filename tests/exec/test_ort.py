"""onnxruntime as an oracle."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from qcompile.errors import CaptureError
from qcompile.exec.ort_exec import OrtModel


@pytest.fixture
def source() -> onnx.ModelProto:
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ports[:1], ports[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_runs_from_memory_bytes_and_file(source: onnx.ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(source, path)
    x = {"x": np.array([[-1, 0, 2]], np.float32)}
    for model in (source, source.SerializeToString(), path):
        session = OrtModel(model)
        assert (session.inputs, session.outputs) == (("x",), ("y",))
        np.testing.assert_array_equal(session.run(x)["y"], [[0, 0, 2]])


def test_errors_are_ours(source: onnx.ModelProto) -> None:
    with pytest.raises(CaptureError, match="onnxruntime cannot load the model"):
        OrtModel(b"nonsense")
    with pytest.raises(CaptureError, match="onnxruntime cannot run the model"):
        OrtModel(source).run({"x": np.zeros((1, 7), np.float32)})


def test_external_data_is_not_followed(
    source: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    weight = TensorProto(name="w", data_type=1, dims=[3], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value="w.bin")
    (tmp_path / "w.bin").write_bytes(bytes(12))
    source.graph.initializer.append(weight)
    source.graph.node.append(helper.make_node("Add", ["y", "w"], ["z"]))
    source.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 3]))
    path = tmp_path / "m.onnx"
    path.write_bytes(source.SerializeToString())
    with pytest.raises(CaptureError, match="onnxruntime cannot load the model"):
        OrtModel(path)
