"""`manifest.json`: where an artifact comes from, and the hash of every file in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import PurePosixPath
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from qcompile.artifact.canonical import canonical_json
from qcompile.errors import ArtifactError

FORMAT = 1
"""Raised when an older reader could not understand the files any more."""

_DIGEST = "sha256"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Model:
    """The source: its file name without folders (or the kind of object) and the hash of what was captured.

    Attributes:
        name: `resnet18.onnx`.
        graph_sha256: content hash of the captured float graph.
    """

    name: str
    graph_sha256: str


@dataclass(frozen=True, slots=True)
class Calibration:
    """The data that was used: file name without folders, number of samples, and hash of what was read."""

    name: str
    samples: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Budgets:
    """What was asked for; None where nothing was.  Seconds and bytes; `uniform` and `pins` such as `w8a8`."""

    latency_seconds: float | None = None
    memory_bytes: int | None = None
    arena_bytes: int | None = None
    uniform: str | None = None
    pins: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Record:
    """What the compiler knows about its job; nothing in it depends on when or where it ran.

    Attributes:
        versions: package → version of everything that had a say in the result.
        model: the source.
        target: its name, as `--target` takes it.
        budgets: what was asked for.
        solver: status, objective, bound, gap, as plain values.
        predicted_seconds: latency of one sample by the cost table; None where nothing was measured.
        arena_bytes: working memory.
        kernels: stored value → implementation that computes it.
        calibration: None where the model was compiled without data.
        seed, threads: as given.
        warnings: sentences that belong to the result, such as that its accuracy is unverified.
    """

    versions: Mapping[str, str]
    model: Model
    target: str
    budgets: Budgets
    solver: Mapping[str, Any]
    predicted_seconds: float | None
    arena_bytes: int
    kernels: Mapping[str, str]
    calibration: Calibration | None = None
    seed: int = 0
    threads: int = 1
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Size and SHA-256 of one file."""

    size: int
    sha256: str

    @staticmethod
    def of(content: bytes) -> FileRecord:
        return FileRecord(len(content), hashlib.sha256(content).hexdigest())


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything in `manifest.json`.

    Attributes:
        format: `FORMAT` of the writer.
        record: the job.
        build: facts of the code generator: compiler, target string, entry point.
        weight_bytes: weights of the planned layers, packed at their widths.
        parameter_bytes: size of parameters.bin: weights, biases, multipliers, tables.
        files: path inside the artifact → size and hash, of every file but the manifest and the measurements.
    """

    format: int
    record: Record
    build: Mapping[str, str]
    weight_bytes: int
    parameter_bytes: int
    files: Mapping[str, FileRecord]

    def to_text(self) -> str:
        """Canonical JSON; one key is the hash of all the others, so that no byte changes unnoticed."""
        body = json.loads(canonical_json(self))
        return canonical_json({**body, _DIGEST: _digest(body)})

    @staticmethod
    def from_text(text: str) -> Manifest:
        """Raises ArtifactError where the text is damaged or of another format version."""
        try:
            data = json.loads(text)
        except ValueError as error:
            raise ArtifactError(f"manifest.json is damaged: {error}") from error
        found = data.get("format") if isinstance(data, dict) else None
        if not isinstance(found, int):
            raise ArtifactError("manifest.json is damaged: it states no format")
        if found != FORMAT:
            raise ArtifactError(
                f"manifest.json states format {found}, this version of qcompile reads format {FORMAT}",
                hint="compile the model again, or use the version of qcompile that wrote it",
            )
        digest = data.pop(_DIGEST, None)
        if digest != _digest(data) or canonical_json({**data, _DIGEST: digest}) != text:
            raise ArtifactError("manifest.json is damaged: its content does not have the hash it states")
        manifest: Manifest = _read(Manifest, data, "manifest")
        for name in manifest.files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or str(path) != name:
                raise ArtifactError(f"manifest.json names a file outside of the artifact: {name!r}")
        return manifest


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(body).encode()).hexdigest()


def _read(kind: Any, data: Any, where: str) -> Any:
    """A value of a type made of dataclasses, mappings, tuples, optionals and plain types, from JSON."""
    if kind is Any:
        return data
    origin, args = get_origin(kind), get_args(kind)
    if origin is UnionType:
        if data is None and NoneType in args:
            return None
        return _read(next(a for a in args if a is not NoneType), data, where)
    if origin is tuple and isinstance(data, list):
        return tuple(_read(args[0], item, where) for item in data)
    if origin is Mapping and isinstance(data, dict):
        return {key: _read(args[1], item, f"{where}.{key}") for key, item in data.items()}
    if origin is None and hasattr(kind, "__dataclass_fields__") and isinstance(data, dict):
        return _read_dataclass(kind, data, where)
    if kind is float and type(data) in (int, float):
        return float(data)
    if origin is None and type(data) is kind:
        return data
    raise ArtifactError(f"manifest.json: {where} is {data!r}, which is not {kind}")


def _read_dataclass(kind: type[T], data: Mapping[str, Any], where: str) -> T:
    hints = get_type_hints(kind)
    names = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    if names != set(data):
        wrong = ", ".join(sorted(names ^ set(data)))
        raise ArtifactError(f"manifest.json: {where} lacks or should not have: {wrong}")
    return kind(**{name: _read(hints[name], data[name], f"{where}.{name}") for name in names})
