"""Bringing a finished artifact to its final place."""

from __future__ import annotations

import shutil
from pathlib import Path

from qcompile.artifact.files import publish, refuse_existing, staging_folder, storage_errors, sync_tree


def publish_copy(source: Path, directory: Path, *, overwrite: bool) -> None:
    """Copy a complete artifact to another folder in one step; raises UsageError or StorageError."""
    refuse_existing(directory, overwrite)
    with staging_folder(directory) as staging, storage_errors(directory):
        shutil.copytree(source, staging, dirs_exist_ok=True)
        sync_tree(staging)
        publish(staging, directory)
