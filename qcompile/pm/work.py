"""Finished pieces of long analyses, kept by a hash of all they depend on: an interrupted run takes up where it stopped.

A piece is a few float64 arrays.  What is read back is bit for bit what was computed, so a run that was killed and
started again ends with the same bytes as one that was not.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from qcompile.ir import Array
from qcompile.target.cost import cache_directory

log = logging.getLogger("qcompile")

_VERSION = 3
"""Of what pieces hold; raise it when an analysis computes something else under the same key."""

_BUSY_SECONDS = 30.0
_LIMIT = 1 << 30
"""Bytes kept; the pieces used longest ago go first."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS pieces (
    key TEXT PRIMARY KEY, used INTEGER NOT NULL, size INTEGER NOT NULL, arrays BLOB NOT NULL
) WITHOUT ROWID
"""


def digest(*parts: Any) -> str:
    """SHA-256 of text, numbers, arrays (with dtype and shape), and sequences and mappings of them."""
    found = hashlib.sha256()
    for part in parts:
        _feed(found, part)
    return found.hexdigest()


def _feed(found: Any, part: Any) -> None:
    if isinstance(part, np.ndarray):
        found.update(f"array {part.dtype.str} {part.shape}\n".encode())
        found.update(np.ascontiguousarray(part).tobytes())
    elif isinstance(part, Mapping):
        found.update(f"mapping {len(part)}\n".encode())
        for key in part:
            _feed(found, key)
            _feed(found, part[key])
    elif isinstance(part, list | tuple):
        found.update(f"sequence {len(part)}\n".encode())
        for item in part:
            _feed(found, item)
    else:
        found.update(f"{type(part).__name__} {json.dumps(part)}\n".encode())


class WorkCache:
    """Pieces in one SQLite file that several processes may use at once; a killed process leaves it whole.

    A file that cannot be used costs time, not the result: a warning is logged once, and nothing is kept.

    Args:
        directory: of the file; the cache folder where it is not given.
        limit: bytes kept.
    """

    def __init__(self, directory: Path | None = None, limit: int = _LIMIT) -> None:
        self.path = (directory or cache_directory()) / f"work-v{_VERSION}.sqlite"
        self.limit = limit
        self.usable = True

    def get(self, key: str) -> dict[str, Array] | None:
        """The arrays put under a key, or None."""
        row = None
        with self._open() as db:
            if db is not None:
                row = db.execute("SELECT arrays FROM pieces WHERE key=?", (key,)).fetchone()
                db.execute("UPDATE pieces SET used=(SELECT max(used)+1 FROM pieces) WHERE key=?", (key,))
        if row is None:
            return None
        with np.load(io.BytesIO(row[0]), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}

    def put(self, key: str, arrays: Mapping[str, Array]) -> None:
        """Keep the arrays of a finished piece."""
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **dict(arrays))
        data = buffer.getvalue()
        with self._open() as db:
            if db is None:
                return
            db.execute(
                "INSERT OR REPLACE INTO pieces VALUES (?, coalesce((SELECT max(used)+1 FROM pieces), 0), ?, ?)",
                (key, len(data), data),
            )
            total = db.execute("SELECT sum(size) FROM pieces").fetchone()[0]
            for old, size in db.execute("SELECT key, size FROM pieces ORDER BY used").fetchall():
                if total <= self.limit or old == key:
                    break
                db.execute("DELETE FROM pieces WHERE key=?", (old,))
                total -= size

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection | None]:
        """A connection whose changes are committed on leaving without an error; None where the file is unusable."""
        db = None
        try:
            if self.usable:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                db = sqlite3.connect(self.path, timeout=_BUSY_SECONDS)
                with db:
                    db.execute(_SCHEMA)
                    yield db
            else:
                yield None
        except (sqlite3.Error, OSError) as error:
            self.usable = False
            log.warning("nothing is kept of long analyses: %s cannot be used: %s", self.path, error)
            if db is None:
                yield None
        finally:
            if db is not None:
                db.close()


def recalled(
    work: WorkCache | None, key: Callable[[], str], compute: Callable[[], dict[str, Array]]
) -> dict[str, Array]:
    """The arrays kept under a key, else computed now and kept; without a store computed, and no key is asked for."""
    if work is None:
        return compute()
    name = key()
    found = work.get(name)
    if found is None:
        found = compute()
        work.put(name, found)
    return found
