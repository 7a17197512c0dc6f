"""Writing an exported program: all files or none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.artifact import Artifact
from qcompile.artifact.canonical import canonical_json
from qcompile.artifact.files import publish, staging_folder, storage_errors, sync_tree
from qcompile.errors import TargetError, UsageError
from qcompile.export import build_files, texts
from qcompile.export.ports import CPort, check_prefix, ports_of
from qcompile.ir import Array
from qcompile.pm.registry import find_backend, find_target
from qcompile.target.deployment import Deployable, Deployment
from qcompile.target.program import Program

FORMATS = ("c",)
MANIFEST = "export.json"

_GOLDEN_BYTES = 1 << 18
"""Of golden inputs in a self-test; of large ones only the first goes in."""


def export_artifact(
    artifact: Artifact,
    out: Path,
    *,
    target: str | None = None,
    prefix: str = "model",
    fast: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write an artifact as C files.

    Args:
        artifact: any; its integer graph is lowered for the target.
        out: folder to write.
        target: another than the artifact's: `c` is portable C.
        prefix: of files and symbols.
        fast: keep the kernels that were the fastest when the artifact was compiled; otherwise those with the smallest
            parameters are taken, because memory is what a small machine has least of.
        overwrite: whether an earlier export may be replaced.

    Returns:
        What `export.json` holds: prefix, target, files, undefined symbols, bytes (code, parameters, arena), ports.

    Raises:
        UsageError: the folder must not be replaced, or the prefix is no identifier.
        TargetError: the target cannot be exported, or a tool for it is missing.
        StorageError: no space or no permission; nothing is left behind.
    """
    check_prefix(prefix)
    _refuse_existing(out, overwrite)
    name = target or artifact.manifest.record.target
    made = _deploy(artifact, name, prefix, fast)
    inputs, outputs = ports_of(artifact.graph, prefix)
    files = _files(artifact, prefix, name, made, inputs, outputs)
    described = {
        "format": 1,
        "prefix": prefix,
        "target": name,
        "files": sorted([*files, *made.objects, MANIFEST]),
        "undefined_symbols": list(made.undefined),
        "arena_bytes": made.arena_bytes,
        "parameter_bytes": made.parameter_bytes,
        # Portable C has no size before somebody compiles it.
        "code_bytes": made.object_bytes if made.objects else None,
        "inputs": [_port_facts(p) for p in inputs],
        "outputs": [_port_facts(p) for p in outputs],
        "graph_sha256": artifact.graph.content_hash,
    }
    with staging_folder(out) as staging, storage_errors(out):
        for file, text in files.items():
            (staging / file).write_text(text, encoding="utf-8")
        for file, content in made.objects.items():
            (staging / file).write_bytes(content)
        (staging / MANIFEST).write_text(canonical_json(described), encoding="utf-8")
        sync_tree(staging)
        publish(staging, out)
    return described


def _refuse_existing(out: Path, overwrite: bool) -> None:
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir() or out.is_symlink():
        raise UsageError(f"{out} is not a folder, so it is not replaced")
    if not any(out.iterdir()):
        return
    if not (out / MANIFEST).is_file():
        raise UsageError(f"{out} is not an exported program, so it is not replaced", hint="choose another --out")
    if not overwrite:
        raise UsageError(f"{out} exists", hint="choose another --out, or replace it with --force")


def _deploy(artifact: Artifact, name: str, prefix: str, fast: bool) -> Deployment:
    target = find_target(name)
    backend = find_backend(target)
    if not isinstance(backend, Deployable):
        raise TargetError(f"programs for {target.name} cannot be exported", hint="--target c is portable C")
    return backend.deploy(_lowered(artifact, target.name, fast), prefix)


def _lowered(artifact: Artifact, name: str, fast: bool) -> Program:
    """The program for a target: the artifact's own, or its integer graph lowered again.  Raises UsageError."""
    from qcompile.verification import lower_again

    if fast and name != artifact.manifest.record.target:
        raise UsageError(f"--fast: nothing was measured for {name}", hint=f"compile the model with --target {name}")
    if fast:
        return lower_again(artifact)
    from passes.lower.plan_memory import plan_program

    program = plan_program(artifact.graph.held(), find_target(name))
    return replace(program, kernels=tuple(replace(kernel, variant="") for kernel in program.kernels))


def _files(
    artifact: Artifact, prefix: str, target: str, made: Deployment, inputs: list[CPort], outputs: list[CPort]
) -> dict[str, str]:
    record = artifact.manifest.record
    about = [
        f"{record.model.name} as integer arithmetic for {target} ({made.target}), by qcompile.",
        "No floating point, no allocation, no threads; every output equals the reference's, see self_test.c.",
    ]
    if artifact.graph.tail is not None:
        about.append("The model's last function (softmax, say) is not part of it: outputs are what goes into it.")
    given, expected = _goldens(artifact)
    objects = sorted(made.objects)
    return {
        f"{prefix}.h": texts.header(prefix, inputs, outputs, made, about),
        f"{prefix}.c": texts.program(prefix, inputs, outputs, made),
        f"{prefix}_parameters.h": made.parameters + "\n",
        "main.c": texts.example(prefix, inputs, outputs),
        "self_test.c": texts.self_test(prefix, inputs, outputs, given, expected),
        "CMakeLists.txt": build_files.cmake(prefix, objects),
        "Makefile": build_files.makefile(prefix, objects, made.compiler, made.target),
    }


def _goldens(artifact: Artifact) -> tuple[Mapping[str, Array], Mapping[str, Array]]:
    """Golden inputs, and what the reference computes from them now."""
    given = dict(artifact.golden_inputs)
    if sum(array.nbytes for array in given.values()) > _GOLDEN_BYTES:
        given = {name: array[:1] for name, array in given.items()}
    expected = artifact.reference_int(given)
    count = len(next(iter(given.values())))
    for name, stored in artifact.golden_outputs.items():
        if not np.array_equal(expected[name], stored[:count]):
            raise UsageError(f"{artifact.path}: its golden outputs are not what the reference computes")
    return given, expected


def _port_facts(port: CPort) -> dict[str, Any]:
    return {
        "name": port.name, "argument": port.argument, "type": port.element, "shape": list(port.shape),
        "scale": port.grid.scale, "zero": port.grid.zero,
    }  # fmt: skip
