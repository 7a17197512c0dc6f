"""Devices behind TVM's RPC: one process each, with a limit on every answer."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from qcompile.errors import DeviceError
from qcompile.target.device import UNTRUSTED, Device
from targets._tvm.rpc_library import Upload

log = logging.getLogger("qcompile")

_PROGRAM = "from targets._tvm.rpc_worker import main; main()"
_STARTING = 300.0
"""Seconds that importing TVM may take on a busy machine."""

_WRONG = re.compile(
    r"wrong ELF class|invalid ELF header|cannot open shared object|Exec format|not a valid|undefined symbol"
)
_REFUSED = re.compile(
    r"matches key|Connect to .* failed|Connection refused|No route|timed out|not resolve|getaddrinfo|retry"
)


class LostError(DeviceError):
    """The device does not answer any more, or never did."""


class RemoteSession:
    """A device that answers `targets._tvm.rpc_worker.Session`'s requests.

    Raises (from every call):
        LostError: the device cannot be reached, closed the connection, or took longer than its timeout.
        DeviceError: it answered that it cannot do what was asked.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        ours, theirs = Pipe()
        path = os.pathsep.join(p or os.getcwd() for p in sys.path)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, str(theirs.fileno())],
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path},
            )  # fmt: skip
        finally:
            theirs.close()
        self._connection: Connection = ours
        self._started = False
        self._loaded: set[str] = set()
        self._numbers = itertools.count()
        self.closed = False

    def connect(self) -> None:
        """Raises LostError where there is no such device."""
        device = self.device
        _warn_once()
        self._knock()
        self._ask("start", limit=_STARTING)
        self.ask("connect", device.host, device.port, device.key, device.tracker)

    def count(self) -> int:
        """How many devices of its kind the tracker knows.  Raises LostError where there is no tracker."""
        self._knock()
        self._ask("start", limit=_STARTING)
        return int(self.ask("count", self.device.host, self.device.port, self.device.key))

    def load(self, upload: Upload) -> str:
        """The name of the loaded module; what is there already is not sent again."""
        if upload.module not in self._loaded:
            self.ask("load", upload.files, upload.module)
            self._loaded.add(upload.module)
        return upload.module

    def numbers(self, count: int) -> list[int]:
        """Names for so many new tensors."""
        return list(itertools.islice(self._numbers, count))

    def _knock(self) -> None:
        """Find out at once where nobody listens; TVM's client tries again and again."""
        device = self.device
        try:
            socket.create_connection((device.host, device.port), timeout=device.timeout).close()
        except OSError as error:
            self.close()
            raise LostError(f"cannot connect to {device}: {error.strerror or error}", hint=_START) from error

    def ask(self, request: str, *arguments: Any) -> Any:
        """The answer to a request, which may take as long as the device's timeout."""
        return self._ask(request, *arguments, limit=self.device.timeout)

    def _ask(self, request: str, *arguments: Any, limit: float) -> Any:
        try:
            self._connection.send((request, *arguments))
            if not self._connection.poll(limit):
                self.close()
                raise LostError(
                    f"{self.device} did not answer {request!r} within {limit:g} s",
                    hint="wait until it is free, or add &timeout=SECONDS to the address if it is only slow",
                )
            kind, value = self._connection.recv()
        except (EOFError, OSError) as error:
            self.close()
            raise LostError(
                f"{self.device} was lost during {request!r}",
                hint="what was measured so far is kept: run the same command again",
            ) from error
        self._started = True
        if kind == "ok":
            return value
        raise self._failure(request, str(value))

    def _failure(self, request: str, text: str) -> DeviceError:
        said = (text.strip().splitlines() or [""])[-1][-300:]
        if request in ("connect", "count"):
            self.close()
            known = "is there no server, or is its key another one?" if _REFUSED.search(text) else said
            return LostError(f"cannot connect to {self.device}: {known}", hint=_START)
        if request == "load" and _WRONG.search(text):
            return DeviceError(
                f"{self.device} cannot load the code: {said}", hint="choose the --target that fits the device"
            )
        if re.search(r"[Ss]ocket|[Cc]onnection|closed|reset|Broken pipe|recv|Recv", text) or request != "load":
            self.close()
            return LostError(
                f"{self.device} failed during {request!r}: {said}",
                hint="it may lack an instruction the code uses; what was measured so far is kept",
            )
        return DeviceError(f"{self.device} failed during {request!r}: {said}")

    def close(self) -> None:
        """End the session; whatever it still does is given up."""
        self.closed = True
        self._connection.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.5 if self._started else 0.0)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


@cache
def _warn_once() -> None:
    log.warning(UNTRUSTED)


_START = "on the device: python -m tvm.exec.rpc_server --host 0.0.0.0 --port PORT --key KEY"


_kept: dict[Device, RemoteSession] = {}


@contextmanager
def session(device: Device) -> Iterator[RemoteSession]:
    """A connected device.

    A server's session is kept for the next user in this process until it ends, because beginning one takes seconds; a
    tracker gets its device back at once.  Within one process a server is used by one thread at a time.
    """
    opened = _kept.pop(device, None)
    if opened is None or opened.closed:
        opened = RemoteSession(device)
        try:
            opened.connect()
        except BaseException:
            opened.close()
            raise
    try:
        yield opened
    finally:
        if device.tracker or opened.closed or device in _kept:
            opened.close()
        else:
            _kept[device] = opened


@atexit.register
def release() -> None:
    """Give all servers back to others."""
    while _kept:
        _kept.popitem()[1].close()


def devices_behind(device: Device) -> int:
    """How many devices stand behind an address.  Raises LostError where a tracker has none of the kind."""
    if not device.tracker:
        return 1
    asked = RemoteSession(device)
    try:
        number = asked.count()
    finally:
        asked.close()
    if not number:
        raise LostError(
            f"{device}: the tracker knows no device of the kind {device.key!r}",
            hint="start one with: python -m tvm.exec.rpc_server --tracker HOST:PORT --key KEY",
        )
    return number
