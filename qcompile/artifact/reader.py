"""Reading an artifact; every byte is compared with the hash the manifest states before anything is used."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from qcompile.artifact import parameters
from qcompile.artifact.layout import (
    GOLDENS,
    GRAPH,
    MANIFEST,
    PARAMETER_INDEX,
    PARAMETERS,
    PLAN,
    split_goldens,
)
from qcompile.artifact.manifest import FileRecord, Manifest
from qcompile.artifact.runner import Artifact
from qcompile.errors import ArtifactError, GraphError, UsageError
from qcompile.ir import Graph, verify
from qcompile.ir.text import from_text


def load(path: str | Path, threads: int | None = None) -> Artifact:
    """The artifact in a folder.  Its library is code: load only artifacts you trust.

    Args:
        path: of the folder.
        threads: that share its work on this machine; by default as many as it was compiled for.

    Raises:
        UsageError: there is no such folder, or a number of threads below 1.
        ArtifactError: damaged, incomplete, or of another format version.
    """
    folder = Path(path)
    if threads is not None and threads < 1:
        raise UsageError(f"threads must be at least 1, not {threads}")
    if not folder.is_dir():
        raise UsageError(f"no such artifact: {folder}", hint="an artifact is a folder such as model.qc")
    try:
        text = (folder / MANIFEST).read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        raise ArtifactError(f"{folder} is not an artifact: it has no {MANIFEST}") from error
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder}: {MANIFEST} cannot be read: {error}") from error
    try:
        manifest = Manifest.from_text(text)
        content = _checked_files(folder, manifest)
        graph = _graph(content)
        stored = parameters.StoredConstants(folder / PARAMETERS, content[PARAMETER_INDEX].decode(), graph.consts)
        graph = replace(graph, consts=stored)
        plan = json.loads(content[PLAN])
        with np.load(io.BytesIO(content[GOLDENS]), allow_pickle=False) as goldens:
            inputs, outputs = split_goldens({name: goldens[name] for name in goldens.files})
    except ArtifactError as error:
        raise ArtifactError(f"{folder}: {error.message}", hint=error.hint) from error
    except (KeyError, ValueError) as error:
        raise ArtifactError(f"{folder}: a file is missing or cannot be understood: {error}") from error
    shared = manifest.record.threads if threads is None else threads
    return Artifact(folder, manifest, graph, plan, inputs, outputs, threads=shared)


def _checked_files(folder: Path, manifest: Manifest) -> dict[str, bytes]:
    """Every file the manifest names; ArtifactError lists all that are missing or changed."""
    content: dict[str, bytes] = {}
    wrong = []
    for name, record in manifest.files.items():
        path = folder / name
        try:
            if path.is_symlink():
                raise OSError("a link")
            content[name] = path.read_bytes()
        except OSError as error:
            wrong.append(f"{name} cannot be read ({error.strerror or error})")
            continue
        if FileRecord.of(content[name]) != record:
            wrong.append(f"{name} has changed since it was written")
    if wrong:
        raise ArtifactError("; ".join(wrong), hint="compile the model again, or copy the artifact again")
    return content


def _graph(content: dict[str, bytes]) -> Graph:
    consts = parameters.decode(content[PARAMETERS], content[PARAMETER_INDEX].decode())
    try:
        graph = from_text(content[GRAPH].decode(), consts)
        verify(graph)
    except GraphError as error:
        raise ArtifactError(f"{GRAPH} does not hold a valid graph: {error}") from error
    return graph
