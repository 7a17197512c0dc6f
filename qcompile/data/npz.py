"""`.npz` files, read a few samples at a time and written with the same bytes every time."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from qcompile.data.check import Header
from qcompile.errors import DataError
from qcompile.ir import Array

_READ_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, OSError)
"""What the standard library raises on damaged, encrypted or exotic archives."""

_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest date a zip file can hold; every member gets it."""


class NpzSource:
    """An `.npz` file whose arrays are streamed row by row, never held whole; pickled objects are refused."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise DataError(f"no such file: {path}", hint="a data file is an .npz, or a folder of images")
        with self._damage(), zipfile.ZipFile(path) as archive:
            members = [name for name in archive.namelist() if name.endswith(".npy")]
            self.headers: dict[str, Header] = {}
            for member in members:
                with archive.open(member) as stream:
                    shape, fortran, dtype = _read_header(stream)
                if dtype.hasobject:
                    raise DataError(f"{path}: {member[:-4]} holds pickled objects, which are never loaded")
                if fortran and len(shape) > 1:
                    raise DataError(
                        f"{path}: {member[:-4]} is stored in Fortran order",
                        hint="save np.ascontiguousarray(x)",
                    )
                self.headers[member[:-4]] = Header(shape, dtype)

    def rows(self, start: int, stop: int, step: int) -> Iterator[dict[str, Array]]:
        """Rows start to stop of every array, `step` at a time.

        Raises:
            DataError: the file is damaged.
        """
        with self._damage(), zipfile.ZipFile(self.path) as archive:
            streams = {name: archive.open(f"{name}.npy") for name in self.headers}
            for name, stream in streams.items():
                _read_header(stream)
                _skip(stream, start * _row_bytes(self.headers[name]))
            for first in range(start, stop, step):
                count = min(step, stop - first)
                yield {name: self._read(name, stream, count) for name, stream in streams.items()}

    def _read(self, name: str, stream: IO[bytes], count: int) -> Array:
        header = self.headers[name]
        data = bytearray(stream.read(count * _row_bytes(header)))  # writable, as torch wants its arrays
        return np.frombuffer(data, header.dtype).reshape(count, *header.shape[1:])

    @contextmanager
    def _damage(self) -> Iterator[None]:
        try:
            yield
        except _READ_ERRORS as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"{self.path} is not a readable .npz file: {reason}") from error


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    version = np.lib.format.read_magic(stream)
    readers: dict[tuple[int, int], Any] = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"array format version {version} is not supported")
    shape, fortran, dtype = readers[version](stream)
    return tuple(int(d) for d in shape), bool(fortran), dtype


def _row_bytes(header: Header) -> int:
    return int(np.prod(header.shape[1:], dtype=np.int64)) * header.dtype.itemsize


def _skip(stream: IO[bytes], count: int) -> None:
    while count > 0:
        chunk = stream.read(min(count, 1 << 20))
        if not chunk:
            raise EOFError("the file ends early")
        count -= len(chunk)


def npz_bytes(arrays: Mapping[str, Array]) -> bytes:
    """An `.npz` file for `np.load`: equal arrays give equal bytes (`np.savez` may write the time of day)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(arrays):
            member = zipfile.ZipInfo(f"{name}.npy", _EPOCH)
            member.create_system, member.external_attr = 3, 0o644 << 16
            body = io.BytesIO()
            array = np.ascontiguousarray(arrays[name])
            np.lib.format.write_array(body, array, version=(1, 0), allow_pickle=False)
            archive.writestr(member, body.getvalue())
    return buffer.getvalue()
