"""Writing so that either everything is there or nothing."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qcompile.artifact.layout import MANIFEST
from qcompile.errors import StorageError, UsageError

_MARK = ".partial-"

STORAGE_ERRNOS = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.EIO,
        errno.ENOTDIR,
        errno.EEXIST,
        errno.EISDIR,
        errno.ENAMETOOLONG,
    }
)
"""Errors that are the storage's, not ours."""


@contextmanager
def storage_errors(what: Path) -> Iterator[None]:
    """Turn what the operating system says about space, permissions and the medium into StorageError."""
    try:
        yield
    except OSError as error:
        if error.errno not in STORAGE_ERRNOS:
            raise
        reason = error.strerror or str(error)
        raise StorageError(
            f"cannot write {what}: {reason}",
            hint="nothing was left behind; free some space or choose another place",
        ) from error


def refuse_existing(directory: Path, overwrite: bool) -> None:
    """Raise UsageError where an artifact must not be written: call it before the work, not after it.

    With `overwrite` an older artifact or an empty folder may be replaced, anything else never.
    """
    if not directory.exists() and not directory.is_symlink():
        return
    if not overwrite:
        raise UsageError(f"{directory} exists", hint="choose another -o, or replace it with --force")
    if directory.is_symlink() or not directory.is_dir():
        raise UsageError(f"{directory} is not a folder, so it is not replaced")
    if any(directory.iterdir()) and not (directory / MANIFEST).is_file():
        raise UsageError(f"{directory} is not an artifact, so it is not replaced", hint="choose another -o")


@contextmanager
def staging_folder(final: Path) -> Iterator[Path]:
    """A new folder beside `final`, which is gone when the block ends unless the block moved it away.

    Folders that killed processes left behind are removed first: they are those nobody holds a lock on.
    """
    with storage_errors(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        # Between its creation and its lock a folder would look abandoned to another process.
        with _locked(final.parent):
            _remove_abandoned(final)
            staging = _unused(final)
            staging.mkdir()
            lock = os.open(staging, os.O_RDONLY)
            fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield staging
    finally:
        os.close(lock)
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _unused(final: Path) -> Path:
    number = 0
    while (candidate := final.with_name(f".{final.name}{_MARK}{os.getpid()}-{number}")).exists():
        number += 1
    return candidate


def _remove_abandoned(final: Path) -> None:
    for folder in final.parent.glob(f".{_escape(final.name)}{_MARK}*"):
        try:
            held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(held)


def _escape(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def sync_tree(folder: Path) -> None:
    """Flush every file and folder to the disk, the folder itself last."""
    for path in sorted(folder.rglob("*")):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def publish(staging: Path, final: Path) -> None:
    """Give a finished folder its name; an older one under that name is removed, or kept if this fails."""
    if not final.exists():
        os.rename(staging, final)
    else:
        old = _unused(final)
        os.rename(final, old)
        try:
            os.rename(staging, final)
        except OSError:
            os.rename(old, final)
            raise
        shutil.rmtree(old, ignore_errors=True)
    _sync(final.parent)


def write_file(path: Path, content: bytes) -> None:
    """Replace a file in one step: a reader sees the old content or the new one, never a part.

    Raises:
        StorageError: no space, or no permission.
    """
    staging = path.with_name(f".{path.name}{_MARK}{os.getpid()}")
    with storage_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(staging, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(staging, path)
        finally:
            staging.unlink(missing_ok=True)
