"""The processes: one for each engine, of which only one runs at a time; the others are stopped."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from benchmarks.conditions import process_seconds, read

ROOT = Path(__file__).parents[1]
START_SECONDS = 300.0
CALL_SECONDS = 300.0


class WorkerError(Exception):
    """A worker that did not start, or ended."""


class Worker:
    """A process of `benchmarks.worker`, stopped except while it is asked.

    Args:
        command: the engine, the model and the options.
        python: the interpreter of the engine's environment.
        environment: variables added to ours.

    Raises:
        WorkerError: it did not become ready; with the last line it wrote.
    """

    def __init__(
        self, command: Sequence[str], python: str = sys.executable, environment: Mapping[str, str] | None = None
    ) -> None:
        variables = {**os.environ, **(environment or {}), "PYTHONPATH": str(ROOT)}
        self._said: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed by `close`; a pipe would block the worker)
        try:
            self._process = subprocess.Popen(
                [python, "-m", "benchmarks.worker", *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=self._said, text=True, env=variables,
            )  # fmt: skip
        except OSError as error:
            self._said.close()
            raise WorkerError(str(error)) from None
        self.ready = self._answer(START_SECONDS)
        self._stop()

    def time(self, calls: int) -> float:
        """Median seconds of so many calls."""
        os.kill(self._process.pid, signal.SIGCONT)
        print(calls, file=self._pipe(self._process.stdin), flush=True)
        answer = self._answer(CALL_SECONDS)
        self._stop()
        return float(answer["median"])

    def cpu_seconds(self) -> float:
        """CPU time it has used."""
        return process_seconds(self._process.pid)

    def state(self) -> str | None:
        """Linux's letter for the state of the process, `T` where it is stopped; None on other systems."""
        line = read(Path(f"/proc/{self._process.pid}/stat"))
        return None if line is None else line.rpartition(")")[2].split()[0]

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._said):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None  # Popen was asked for it
        return pipe

    def _stop(self) -> None:
        os.kill(self._process.pid, signal.SIGSTOP)
        # The signal takes a moment; the process must not run on beside the next one.
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def _answer(self, seconds: float) -> dict[str, Any]:
        out = self._pipe(self._process.stdout)
        with selectors.DefaultSelector() as selector:
            selector.register(out, selectors.EVENT_READ)
            line = out.readline() if selector.select(seconds) else ""
        if not line:
            self._process.kill()
            self._process.wait()
            self._said.seek(0)
            said = self._said.read().strip().splitlines() or ["the worker ended without a word"]
            self.close()
            raise WorkerError(said[-1])
        return dict(json.loads(line))
