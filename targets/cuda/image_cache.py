"""Compiled kernels kept between runs, by a hash of everything that went into them."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from qcompile.target.cost import cache_directory

_FOLDER = "cuda-v1"
_LIMIT = 256 << 20
"""Bytes kept; the files used longest ago go first."""
_HEADER = 8


class ImageCache:
    """One file for each image, written whole or not at all; any number of processes may share it.

    A folder that cannot be used costs time, not the result.

    Args:
        directory: the cache folder where it is not given.
        limit: bytes kept.
    """

    def __init__(self, directory: Path | None = None, limit: int = _LIMIT) -> None:
        self.folder = (directory or cache_directory()) / _FOLDER
        self.limit = limit

    def get(self, key: str) -> tuple[bytes, bytes] | None:
        """The two parts put under a key, or None."""
        path = self.folder / key
        try:
            data = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        split = int.from_bytes(data[:_HEADER], "little") + _HEADER
        return data[_HEADER:split], data[split:]

    def put(self, key: str, parts: tuple[bytes, bytes]) -> None:
        """Keep an image."""
        first, second = parts
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.folder, delete=False) as file:
                file.write(len(first).to_bytes(_HEADER, "little") + first + second)
            os.replace(file.name, self.folder / key)
        except OSError:
            return

    def trim(self) -> None:
        """Drop what was used longest ago until the rest is within the limit."""
        try:
            self._trim()
        except OSError:
            return

    def _trim(self) -> None:
        if not self.folder.exists():
            return
        files = [(entry.stat().st_mtime_ns, entry.stat().st_size, entry.path) for entry in os.scandir(self.folder)]
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self.limit:
                break
            Path(path).unlink(missing_ok=True)
            total -= size
