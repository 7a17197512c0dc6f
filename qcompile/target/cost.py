"""What kernels cost: measurements kept between runs, and a roofline where nothing can be measured.

A latency without its conditions is worthless, so the device, the thread count and the compiler are part of
the key and everything else the measurer knows (clock, load, date) is stored beside the value.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from qcompile.errors import StorageError
from qcompile.target.backend import Measurement
from qcompile.target.model import Target
from qcompile.target.program import KernelWork, ProgramWork

Work = KernelWork | ProgramWork

_BUSY_SECONDS = 30.0
"""How long one process waits for another's write; a write takes milliseconds."""

_VERSION = 4
"""Of the table below and of the probe its clocks come from; a file of another version is left alone and a new one is
made beside it."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS costs (
    device TEXT NOT NULL, work TEXT NOT NULL, threads INTEGER NOT NULL, compiler TEXT NOT NULL,
    median REAL NOT NULL, p90 REAL NOT NULL, runs INTEGER NOT NULL, clock REAL NOT NULL, conditions TEXT NOT NULL,
    PRIMARY KEY (device, work, threads, compiler)
) WITHOUT ROWID
"""
_CLOCKS = "CREATE TABLE IF NOT EXISTS clocks (device TEXT PRIMARY KEY, clock REAL NOT NULL) WITHOUT ROWID"
_WHERE = "FROM costs WHERE device=? AND work=? AND threads=? AND compiler=?"


def cache_directory() -> Path:
    """Where qcompile keeps what it can measure again: QCOMPILE_CACHE_DIR, or the user's cache folder."""
    if chosen := os.environ.get("QCOMPILE_CACHE_DIR"):
        return Path(chosen)
    import platformdirs

    return Path(platformdirs.user_cache_dir("qcompile"))


@cache
def fingerprint() -> str:
    """This device in the keys of measurements: processor model, hash of its features, cores; no host name."""
    model, flags = platform.processor() or platform.machine(), ""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    for line in text.splitlines():
        name, _, value = (part.strip() for part in line.partition(":"))
        if name in ("model name", "Hardware"):
            model = value
        elif name in ("flags", "Features"):
            # The order of the flags is the kernel's business, not the processor's.
            flags = " ".join(sorted(value.split()))
    digest = hashlib.sha256(flags.encode()).hexdigest()[:12]
    return f"{' '.join(model.split())}; flags {digest}; {os.cpu_count() or 1} cores"


class CostCache:
    """Measured costs of kernels and programs in one SQLite file that several processes may use at once.

    What it gives back is brought to one clock, that of the device's first measurement, so that measurements of
    different days may be added up and later ones change no earlier one.

    Write-ahead logging keeps the file whole when a process is killed; what was put before stays.  Each call
    opens its own connection, so an instance may cross threads and forks.

    Args:
        directory: of the file; `cache_directory()` where it is not given.
        device: first part of every key; `fingerprint()` where it is not given.
    """

    def __init__(self, directory: Path | None = None, device: str | None = None) -> None:
        self.path = (directory or cache_directory()) / f"costs-v{_VERSION}.sqlite"
        self.device = device or fingerprint()

    def get_many(self, works: Iterable[Work], threads: int, compiler: str) -> dict[str, Measurement]:
        """The known measurements among these works, by key.

        Raises:
            StorageError: the cache cannot be opened.
        """
        found: dict[str, Measurement] = {}
        with self._open() as db:
            reference = _reference_clock(db, self.device)
            for key in dict.fromkeys(work.key for work in works):
                where = (self.device, key, threads, compiler)
                row = db.execute(f"SELECT median, p90, runs, clock {_WHERE}", where).fetchone()
                if row is not None:
                    found[key] = Measurement(row[0], row[1], row[2], threads, row[3]).at(reference)
        return found

    def rows(self, threads: int, compiler: str) -> dict[str, Measurement]:
        """Everything this device measured with a compiler, by key, at one clock."""
        where = (self.device, threads, compiler)
        with self._open() as db:
            reference = _reference_clock(db, self.device)
            query = "SELECT work, median, p90, runs, clock FROM costs WHERE device=? AND threads=? AND compiler=?"
            found = db.execute(query, where).fetchall()
        return {key: Measurement(m, p90, runs, threads, clock).at(reference) for key, m, p90, runs, clock in found}

    def clock(self) -> float:
        """The clock costs are given at, as `qcompile.target.clock.probe` gives it; 0 where nothing is known."""
        with self._open() as db:
            return _reference_clock(db, self.device)

    def put(
        self,
        work: Work,
        compiler: str,
        measurement: Measurement,
        conditions: Mapping[str, Any] | None = None,
    ) -> None:
        """Store one measurement (its `threads` is part of the key), replacing an older one.

        Args:
            work: the kernel or program that was measured.
            compiler: its version string.
            measurement: seconds; must be finite and not negative.
            conditions: whatever else was known, as JSON values (clock, load, isolation, …).

        Raises:
            StorageError: the cache cannot be written.
            ValueError: the measurement holds no usable number.
        """
        self.put_row(work.key, compiler, measurement, conditions)

    def put_row(
        self, key: str, compiler: str, measurement: Measurement, conditions: Mapping[str, Any] | None = None
    ) -> None:
        """`put` by the key of a work."""
        if not all(math.isfinite(s) and s >= 0 for s in (measurement.median, measurement.p90)):
            raise ValueError(f"not a duration: {measurement}")
        row = (
            self.device, key, measurement.threads, compiler,
            measurement.median, measurement.p90, measurement.runs, measurement.clock,
            json.dumps(dict(conditions or {}), sort_keys=True),
        )  # fmt: skip
        with self._open() as db:
            db.execute("INSERT OR REPLACE INTO costs VALUES (?,?,?,?,?,?,?,?,?)", row)
            if measurement.clock > 0:
                db.execute("INSERT OR IGNORE INTO clocks VALUES (?,?)", (self.device, measurement.clock))

    def conditions(self, work: Work, threads: int, compiler: str) -> dict[str, Any] | None:
        """What was noted about a measurement, or None where there is none."""
        with self._open() as db:
            row = db.execute(
                f"SELECT conditions {_WHERE}",
                (self.device, work.key, threads, compiler),
            ).fetchone()
        return None if row is None else dict(json.loads(row[0]))

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A connection whose changes are committed on leaving without an error."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            db = sqlite3.connect(self.path, timeout=_BUSY_SECONDS)
            try:
                _prepare(db)
                with db:
                    yield db
            finally:
                db.close()
        except (sqlite3.Error, OSError) as error:
            raise StorageError(
                f"the cost cache {self.path} cannot be used: {error}",
                hint="delete the file, or set QCOMPILE_CACHE_DIR to a folder you may write to",
            ) from error


def _reference_clock(db: sqlite3.Connection, device: str) -> float:
    row = db.execute("SELECT clock FROM clocks WHERE device=?", (device,)).fetchone()
    return float(row[0]) if row else 0.0


def _prepare(db: sqlite3.Connection) -> None:
    """Set the journal mode and make the table.

    Switching to write-ahead logging needs the file alone and, unlike other statements, does not wait for its
    turn; so the first processes to meet on a new file retry.
    """
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")
            db.execute(_SCHEMA)
            db.execute(_CLOCKS)
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.005)


def macs_of(work: KernelWork) -> int:
    """Multiply-accumulates of one sample; without weights, one operation for each element that is read."""
    return sum(_node_macs(*node) for node in work.nodes)


def _node_macs(op: object, attrs: object, type_: Any, shapes: Any, operands: Any) -> int:
    weights: Sequence[int] = dict(shapes).get("w", ())
    if weights:
        return int(type_.numel * math.prod(weights[1:]))
    return int(type_.numel * math.prod(dict(_pairs(attrs)).get("kernel", ())) * len(operands))


def _pairs(attrs: Any) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((name, value) for name, value in attrs if isinstance(value, tuple))


def roofline(work: KernelWork, target: Target) -> float:
    """Seconds one thread needs at least: the slower of arithmetic at peak and memory traffic at full
    bandwidth.

    Weights count one byte each and other constants four, because a work does not hold their precision.
    """
    moved = sum(layout.bytes for layout in (*work.inputs, work.output))
    for node in work.nodes:
        shapes: Any = node[3]
        moved += sum(math.prod(shape) * (1 if role == "w" else 4) for role, shape in shapes)
    return max(macs_of(work) / target.peak_macs_per_second, moved / target.bytes_per_second)
