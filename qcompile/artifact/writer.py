"""Writing an artifact: complete or not at all, and the same bytes for the same content."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qcompile.artifact import parameters
from qcompile.artifact.canonical import canonical_json
from qcompile.artifact.files import publish, refuse_existing, staging_folder, storage_errors, sync_tree
from qcompile.artifact.layout import (
    GOLDENS,
    GRAPH,
    LIBRARY,
    MANIFEST,
    PARAMETER_INDEX,
    PARAMETERS,
    PLAN,
    golden_arrays,
)
from qcompile.artifact.manifest import FORMAT, FileRecord, Manifest, Record
from qcompile.data.npz import npz_bytes
from qcompile.errors import InternalError
from qcompile.ir import INT, Array, Graph
from qcompile.ir.text import to_text
from qcompile.semantics import interp

Build = Callable[[Path], Mapping[str, str]]
"""Writes the library's files into a folder that exists, and returns facts for the manifest."""


def write_artifact(
    directory: Path,
    *,
    graph: Graph,
    record: Record,
    plan: Mapping[str, Any],
    golden_inputs: Mapping[str, Array],
    build: Build,
    overwrite: bool = False,
) -> Manifest:
    """Write an artifact; it appears under its name when it is complete.

    Args:
        directory: `model.qc`; the folder it lies in is made where it is missing.
        graph: integer graph, with the tail the host runs.
        record: for the manifest.
        plan: JSON values with the key `bits`: layer → (weight bits, activation bits).
        golden_inputs: integer arrays (n, …) by input name; the outputs beside them come from the reference.
        build: see `Build`.
        overwrite: replace an older artifact.

    Raises:
        UsageError: the directory exists and must not be replaced.
        StorageError: no space or no permission; nothing is left behind, and an older artifact stays.
    """
    if graph.level != INT or "bits" not in plan:
        raise InternalError("an artifact needs an integer graph and a plan with its bits")
    directory = Path(directory)
    refuse_existing(directory, overwrite)
    packed, index = parameters.encode(graph)
    texts = {
        GRAPH: to_text(graph).encode(),
        PARAMETERS: packed,
        PARAMETER_INDEX: index.encode(),
        PLAN: canonical_json(plan).encode(),
        GOLDENS: npz_bytes(golden_arrays(golden_inputs, interp.run(graph, golden_inputs))),
    }
    with staging_folder(directory) as staging, storage_errors(directory):
        for name, content in texts.items():
            (staging / name).write_bytes(content)
        (staging / LIBRARY).mkdir()
        facts = build(staging / LIBRARY)
        manifest = Manifest(
            format=FORMAT,
            record=record,
            build=dict(facts),
            weight_bytes=parameters.weight_bytes(graph),
            parameter_bytes=len(packed),
            files=_file_records(staging),
        )
        (staging / MANIFEST).write_text(manifest.to_text(), encoding="utf-8")
        sync_tree(staging)
        publish(staging, directory)
    return manifest


def _file_records(folder: Path) -> dict[str, FileRecord]:
    """Every file of an artifact that is complete but for its manifest."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): FileRecord.of(path.read_bytes()) for path in paths}
