"""External data: read from the model's folder, and from nowhere else."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest

from qcompile.capture import capture
from qcompile.capture.check import check_capture
from qcompile.errors import CaptureError
from tests.capture.onnx_nets import one, weights

W = weights(6, 4, 3, 3)


def write(folder: Path, location: str, offset: str | None = None, length: str | None = None) -> Path:
    """A model whose weight lies at a location."""
    folder.mkdir(exist_ok=True)
    source = one("Conv", W)
    tensor = source.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": offset, "length": length}.items():
        if value is not None:
            tensor.external_data.add(key=key, value=value)
    path = folder / "m.onnx"
    path.write_bytes(source.SerializeToString())
    return path


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file outside of the model's folder, of the right size."""
    path = tmp_path / "secret.bin"
    path.write_bytes(W.tobytes())
    return path


def test_data_in_the_folder_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "m", "w.bin", "8", str(W.nbytes))
    (tmp_path / "m" / "w.bin").write_bytes(b"12345678" + W.tobytes() + b"rest")
    graph = capture(path)
    np.testing.assert_array_equal(graph.const(graph.nodes[0], "w"), W)
    assert check_capture(graph, path) < 1e-5


def test_data_in_a_subfolder_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "m", "data/w.bin")
    (tmp_path / "m" / "data").mkdir()
    (tmp_path / "m" / "data" / "w.bin").write_bytes(W.tobytes())
    monkeypatch.chdir(path.parent)
    assert capture("m.onnx").nodes


def test_parent_folder(tmp_path: Path, secret: Path) -> None:
    with pytest.raises(CaptureError, match="leaves the model's folder"):
        capture(write(tmp_path / "m", "../secret.bin"))


def test_parent_folder_on_the_way(tmp_path: Path, secret: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "sub").mkdir()
    with pytest.raises(CaptureError, match="leaves the model's folder"):
        capture(write(tmp_path / "m", "sub/../../secret.bin"))


@pytest.mark.parametrize("location", ["", "C:\\secret.bin", "\\secret.bin", "\\\\host\\share", "a\0b"])
def test_no_relative_path(tmp_path: Path, location: str) -> None:
    with pytest.raises(CaptureError, match="is not a relative path"):
        capture(write(tmp_path / "m", location))


def test_absolute_path(tmp_path: Path, secret: Path) -> None:
    with pytest.raises(CaptureError, match="is not a relative path"):
        capture(write(tmp_path / "m", str(secret)))


def test_symlinked_file(tmp_path: Path, secret: Path) -> None:
    path = write(tmp_path / "m", "w.bin")
    (tmp_path / "m" / "w.bin").symlink_to(secret)
    with pytest.raises(CaptureError, match="is a symbolic link"):
        capture(path)


def test_symlinked_folder(tmp_path: Path, secret: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "m", "sub/secret.bin")
    (tmp_path / "m" / "sub").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(CaptureError, match="is a symbolic link"):
        capture(path)
    monkeypatch.chdir(path.parent)
    with pytest.raises(CaptureError, match="is a symbolic link"):
        capture("m.onnx")


def test_hard_link(tmp_path: Path, secret: Path) -> None:
    path = write(tmp_path / "m", "w.bin")
    os.link(secret, tmp_path / "m" / "w.bin")
    with pytest.raises(CaptureError, match="hard link"):
        capture(path)


def test_folder_and_device(tmp_path: Path) -> None:
    path = write(tmp_path / "m", "w.bin")
    (tmp_path / "m" / "w.bin").mkdir()
    with pytest.raises(CaptureError, match="not a regular file"):
        capture(path)
    (tmp_path / "m" / "w.bin").rmdir()
    os.mkfifo(tmp_path / "m" / "w.bin")
    with pytest.raises(CaptureError, match="not a regular file"):
        capture(path)


@pytest.mark.parametrize("field", ["offset", "length"])
@pytest.mark.parametrize("amount", ["-1", "99999999999999999999", "1e3", "0x10", " 4", ""])
def test_amounts_that_are_no_counts(tmp_path: Path, field: str, amount: str) -> None:
    path = write(tmp_path / "m", "w.bin", **{field: amount})
    (tmp_path / "m" / "w.bin").write_bytes(W.tobytes())
    with pytest.raises(CaptureError, match="is not a count of bytes"):
        capture(path)


@pytest.mark.parametrize(
    ("offset", "length", "reason"),
    [
        ("4", None, "lie outside of 'w.bin'"),
        (str(1 << 60), None, "lie outside of 'w.bin'"),
        ("0", str(1 << 50), "its shape needs"),
        ("0", "4", "its shape needs"),
    ],
)
def test_amounts_that_do_not_fit(tmp_path: Path, offset: str, length: str | None, reason: str) -> None:
    path = write(tmp_path / "m", "w.bin", offset, length)
    (tmp_path / "m" / "w.bin").write_bytes(W.tobytes())
    with pytest.raises(CaptureError, match=reason):
        capture(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match=r"there is no file 'w.bin'"):
        capture(write(tmp_path / "m", "w.bin"))


def test_external_data_of_a_model_in_memory(tmp_path: Path) -> None:
    model = onnx.load(write(tmp_path / "m", "w.bin"), load_external_data=False)
    with pytest.raises(CaptureError, match="a model in memory has no folder"):
        capture(model)


def test_external_tensor_in_an_attribute(tmp_path: Path, secret: Path) -> None:
    source = one("Relu")
    value = onnx.TensorProto(name="hidden", data_type=1, dims=list(W.shape), data_location=1)
    value.external_data.add(key="location", value="../secret.bin")
    source.graph.node.append(onnx.helper.make_node("Constant", [], ["unused"], value=value))
    path = tmp_path / "m" / "m.onnx"
    path.parent.mkdir()
    path.write_bytes(source.SerializeToString())
    with pytest.raises(CaptureError, match="leaves the model's folder"):
        capture(path)
