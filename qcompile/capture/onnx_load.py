"""Reading ONNX files that may be hostile.

Nothing outside of the model's folder is read and nothing is executed.  External data is read here and not by
the onnx package, whose checks can be walked around (a symlinked folder with an empty base folder, say).
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import onnx
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]

from qcompile.errors import CaptureError

MAX_FILE = 2**31 - 1
"""Protobuf cannot hold more; larger models keep their tensors in external data."""


def load_model(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """Read a model with all external data inside.

    Raises:
        CaptureError: not a readable ONNX model, truncated, or it reaches outside of its folder.
    """
    path = Path(path)
    if not path.is_file():
        raise CaptureError(f"there is no model file {str(path)!r}")
    size = path.stat().st_size
    if size > MAX_FILE:
        raise CaptureError(
            f"{path.name} has {size} bytes, more than an ONNX file can hold (2 GiB)",
            hint="save the model with external data",
        )
    try:
        model = onnx.ModelProto.FromString(path.read_bytes())
    except (DecodeError, RecursionError) as error:
        raise CaptureError(f"{path.name} is not an ONNX model, or it is truncated: {error}") from None
    except OSError as error:
        raise CaptureError(f"cannot read {path.name}: {error.strerror}") from None
    return embed(model, path.absolute().parent)


def embed(model: onnx.ModelProto, folder: Path | None) -> onnx.ModelProto:
    """Check the model's outline and replace external tensors by their content.

    Args:
        model: changed in place.
        folder: where its external data lies; None refuses external data.
    """
    if not model.HasField("graph") or not model.graph.node:
        raise CaptureError("the file holds no ONNX graph: it is empty, truncated or of another format")
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            if folder is None:
                raise CaptureError(
                    f"tensor {tensor.name!r} lies in external data, and a model in memory has no folder",
                    hint="pass the path of the model file",
                )
            data = _external(tensor, folder)
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.raw_data = data
    return model


def _tensors(message: Message) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model, those in attributes, subgraphs and functions too.

    Raises:
        CaptureError: a text of the model is not UTF-8 (protobuf then returns bytes where text is declared).
    """
    pending: list[Any] = [message]
    while pending:
        current = pending.pop()
        if isinstance(current, onnx.TensorProto):
            yield current
        for field, value in current.ListFields():
            if field.type == field.TYPE_STRING:
                if any(not isinstance(text, str) for text in ([value] if isinstance(value, str | bytes) else value)):
                    raise CaptureError(f"the model is damaged: a text in its field {field.name!r} is not UTF-8")
            elif field.message_type is not None:
                pending.extend([value] if isinstance(value, Message) else value)


def _external(tensor: onnx.TensorProto, folder: Path) -> bytes:
    """The bytes of one external tensor."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    where = f"external data of tensor {tensor.name!r}"
    unknown = set(entries) - {"location", "offset", "length", "checksum", "basepath"}
    if unknown:
        raise CaptureError(f"{where}: unknown key {sorted(unknown)[0]!r}")
    file = _safe_path(entries.get("location", ""), folder, where)
    offset = _amount(entries.get("offset", "0"), f"{where}: offset")
    expected = _bytes_of(tensor, where)
    length = _amount(entries.get("length", str(expected)), f"{where}: length")
    if length != expected:
        raise CaptureError(f"{where}: {length} bytes are given, its shape needs {expected}")
    try:
        # Opened first and checked by its descriptor: what was checked is what is read.
        handle = os.open(file, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise CaptureError(f"{where}: cannot open {file.name!r}: {error.strerror}") from None
    info = os.fstat(handle)
    if not stat.S_ISREG(info.st_mode):
        os.close(handle)
        raise CaptureError(f"{where}: {file.name!r} is not a regular file")
    with os.fdopen(handle, "rb") as stream:
        if info.st_nlink != 1:
            raise CaptureError(
                f"{where}: {file.name!r} has a second name (a hard link), maybe in another folder",
                hint="copy the file",
            )
        if offset + length > info.st_size:
            raise CaptureError(
                f"{where}: bytes {offset} to {offset + length} lie outside of {file.name!r} ({info.st_size} bytes)"
            )
        stream.seek(offset)
        data = stream.read(length)
    if len(data) != length:
        raise CaptureError(f"{where}: {file.name!r} is truncated")
    return data


def _safe_path(location: str, folder: Path, where: str) -> Path:
    """A file in the folder, reached without links and without leaving it."""
    posix, windows = PurePosixPath(location), PureWindowsPath(location)
    if not location or "\0" in location or posix.is_absolute() or windows.drive or windows.root:
        raise CaptureError(f"{where}: the location {location!r} is not a relative path")
    if ".." in posix.parts or ".." in windows.parts:
        raise CaptureError(f"{where}: the location {location!r} leaves the model's folder")
    path = folder
    for part in posix.parts:
        path = path / part
        if path.is_symlink():
            raise CaptureError(
                f"{where}: {part!r} in {location!r} is a symbolic link",
                hint="copy the file into the model's folder",
            )
    if not path.exists():
        raise CaptureError(f"{where}: there is no file {location!r} in the model's folder")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise CaptureError(f"{where}: the location {location!r} leaves the model's folder")
    return path


def _amount(text: str, what: str) -> int:
    """A count of bytes: plain decimal digits that fit into 63 bits."""
    if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) < 2**63):
        raise CaptureError(f"{what} {text!r} is not a count of bytes")
    return int(text)


def _bytes_of(tensor: onnx.TensorProto, where: str) -> int:
    if any(d < 0 for d in tensor.dims):
        raise CaptureError(f"{where}: it has a negative dimension")
    try:
        item = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except (KeyError, ValueError, TypeError):
        raise CaptureError(f"{where}: unknown element type {tensor.data_type}") from None
    return math.prod(int(d) for d in tensor.dims) * int(item)
