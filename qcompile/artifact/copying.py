"""Bringing a finished artifact to its final place."""

from __future__ import annotations

import shutil
from pathlib import Path

from qcompile.artifact.files import publish, refuse_existing, staging_folder, storage_errors, sync_tree


def publish_copy(source: Path, directory: Path, *, overwrite: bool) -> None:
    """Copy a complete artifact to another folder in one step; raises UsageError or StorageError."""
    refuse_existing(directory, overwrite)
    with staging_folder(directory) as staging, storage_errors(directory):
        # Not shutil.copytree: it hides which error of the operating system stopped it.
        for path in sorted(source.rglob("*")):
            target = staging / path.relative_to(source)
            if path.is_dir():
                target.mkdir()
            else:
                shutil.copyfile(path, target)
                shutil.copymode(path, target)
        sync_tree(staging)
        publish(staging, directory)
