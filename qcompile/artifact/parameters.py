"""All constants of an artifact in one file: weights packed at their real width, the rest little-endian.

`parameters.bin` is the data without gaps; `parameters.json` says what lies where.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.artifact.canonical import canonical_json
from qcompile.errors import ArtifactError, InternalError
from qcompile.ir import WEIGHTED, Array, Graph
from qcompile.semantics.grids import pack_bits, packed_bytes, unpack_bits

_DTYPES = frozenset({"int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64"})


def weight_widths(graph: Graph) -> dict[str, int]:
    """Constant name → bits, of the weights of all layers of an integer graph."""
    widths: dict[str, int] = {}
    for node in graph.nodes:
        name = node.const("w")
        if node.op in WEIGHTED and name is not None:
            widths[name] = max(widths.get(name, 0), node.attrs.int("weight_bits"))
    return widths


def weight_bytes(graph: Graph) -> int:
    """Bytes of all weights of an integer graph, each packed at its width."""
    return sum(packed_bytes(graph.consts[name].size, bits) for name, bits in weight_widths(graph).items())


def encode(graph: Graph) -> tuple[bytes, str]:
    """(parameters.bin, parameters.json) of an integer graph and its tail.

    Raises:
        InternalError: a weight does not fit its width, or two constants share a name.
    """
    widths = weight_widths(graph)
    parts: list[bytes] = []
    index: list[dict[str, Any]] = []
    offset = 0
    for name, array in _constants(graph):
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        bits = widths.get(name, 8 * array.dtype.itemsize)
        if name in widths and bits < 8:
            data = pack_bits(array, bits)
            if not np.array_equal(unpack_bits(data, bits, array.size, signed=True), array.ravel()):
                raise InternalError(f"constant {name!r} does not fit into {bits} bits")
        else:
            data = little.tobytes()
        entry = {"name": name, "dtype": array.dtype.name, "bits": bits, "shape": list(array.shape)}
        index.append({**entry, "offset": offset, "bytes": len(data)})
        parts.append(data)
        offset += len(data)
    return b"".join(parts), canonical_json(index)


def _constants(graph: Graph) -> Iterator[tuple[str, Array]]:
    """Constants of the graph, then of the tail, each sorted by name."""
    tail: Mapping[str, Array] = graph.tail.consts if graph.tail is not None else {}
    if both := set(graph.consts) & set(tail):
        raise InternalError(f"the graph and its output function both have a constant {min(both)!r}")
    yield from sorted(graph.consts.items())
    yield from sorted(tail.items())


def decode(data: bytes, index: str) -> dict[str, Array]:
    """Constants by name, read-only.

    Raises:
        ArtifactError: the index does not fit the data.
    """
    try:
        return {entry["name"]: _decode_one(data, entry) for entry in json.loads(index)}
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"parameters.json does not describe parameters.bin: {error}") from error


class StoredConstants(Mapping[str, Array]):
    """Constants that are read from `parameters.bin` whenever they are asked for, small ones but once.

    A running artifact has the weights in the order its kernels read them and needs no second copy; the reference needs
    one layer's at a time.  The file is held open, so a folder that is replaced meanwhile changes nothing, and every
    array must have the hash it was loaded with.

    Args:
        path: of `parameters.bin`.
        index: text of `parameters.json`.
        known: the constants as `decode` gave them.
    """

    SMALL = 4096
    """Bytes up to which a constant stays in memory."""

    def __init__(self, path: Path, index: str, known: Mapping[str, Array]) -> None:
        self._file = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        weakref.finalize(self, os.close, self._file)
        large = {name for name, array in known.items() if array.nbytes > self.SMALL}
        self._entries = {entry["name"]: entry for entry in json.loads(index) if entry["name"] in large}
        self._digests = {name: _digest(known[name]) for name in self._entries}
        self._held = {name: np.array(array) for name, array in known.items() if name not in self._entries}
        for array in self._held.values():
            array.flags.writeable = False
        self._names = tuple(known)

    def __getitem__(self, name: str) -> Array:
        if name in self._held:
            return self._held[name]
        entry = self._entries[name]
        data = os.pread(self._file, int(entry["bytes"]), int(entry["offset"]))
        try:
            array = _decode_one(data, {**entry, "offset": 0})
        except ValueError:
            array = np.zeros(0)
        if _digest(array) != self._digests[name]:
            raise ArtifactError(f"constant {name!r} has changed since the artifact was loaded", hint="load it again")
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _digest(array: Array) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest()


def _decode_one(data: bytes, entry: Mapping[str, Any]) -> Array:
    dtype, bits, shape = str(entry["dtype"]), int(entry["bits"]), tuple(int(d) for d in entry["shape"])
    offset, size, count = int(entry["offset"]), int(entry["bytes"]), math.prod(shape)
    if dtype not in _DTYPES or offset < 0 or size != packed_bytes(count, bits) or offset + size > len(data):
        raise ValueError(f"constant {entry['name']!r} is out of place")
    chunk = data[offset : offset + size]
    if bits < 8:
        array = unpack_bits(chunk, bits, count, signed=dtype == "int8").reshape(shape)
    else:
        array = np.frombuffer(chunk, np.dtype(dtype).newbyteorder("<")).astype(dtype, copy=False).reshape(shape)
    array.flags.writeable = False
    return array
