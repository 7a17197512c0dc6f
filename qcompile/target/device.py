"""Devices that code runs on: this machine, or others by TVM's RPC.  Data only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable
from urllib.parse import parse_qs, urlsplit

from qcompile.errors import UsageError
from qcompile.target.backend import Backend

LOCAL = "local"
SCHEME = "rpc"
DEFAULT_TIMEOUT = 60.0
UNTRUSTED = (
    "TVM's RPC is neither authenticated nor encrypted, and whoever reaches it can run any code: "
    "use it on a trusted network only"
)
_HINT = (
    "rpc://HOST:PORT?key=KEY for a server, rpc://tracker@HOST:PORT?key=KEY for devices behind a tracker, "
    "with &timeout=SECONDS for slow ones"
)


@dataclass(frozen=True, slots=True)
class Device:
    """A server of TVM's RPC, or all devices of one kind behind a tracker.

    Attributes:
        host, port: of the server or the tracker.
        key: what the server was started with; behind a tracker the kind of device.
        tracker: whether it is one.
        timeout: seconds one answer may take.
    """

    host: str
    port: int
    key: str = ""
    tracker: bool = False
    timeout: float = DEFAULT_TIMEOUT

    @property
    def fingerprint(self) -> str:
        """The device in the keys of measurements: a key names a kind of device, wherever it is."""
        return f"rpc {self.key}" if self.key else f"rpc {self.host}:{self.port}"

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"rpc://{'tracker@' if self.tracker else ''}{host}:{self.port}{f'?key={self.key}' if self.key else ''}"


def parse_device(text: str | None) -> Device | None:
    """`--device`: None for this machine (`local`, or nothing).  Raises UsageError."""
    if text is None or text == LOCAL:
        return None
    try:
        parts = urlsplit(text)
        port, host = parts.port, parts.hostname
        given = {name: values[-1] for name, values in parse_qs(parts.query, strict_parsing=bool(parts.query)).items()}
        timeout = float(given.pop("timeout", DEFAULT_TIMEOUT))
    except ValueError as error:
        raise UsageError(f"cannot read --device {text!r}: {error}", hint=_HINT) from None
    key = given.pop("key", "")
    if parts.scheme != SCHEME or not host or not port or parts.path not in ("", "/") or parts.fragment:
        raise UsageError(f"cannot read --device {text!r}", hint=f"{LOCAL}, or {_HINT}")
    if parts.username not in (None, "tracker") or parts.password or given or not timeout > 0:
        wrong = next(iter(given), parts.username or "timeout")
        raise UsageError(f"cannot read --device {text!r}: {wrong!r} means nothing there", hint=_HINT)
    if any(c.isspace() or c == ":" for c in key):
        raise UsageError(f"cannot read --device {text!r}: a key has neither spaces nor colons", hint=_HINT)
    tracker = parts.username == "tracker"
    if tracker and not key:
        raise UsageError(f"--device {text!r} names no kind of device", hint="add ?key=KEY, as the servers were started")
    return Device(host, port, key, tracker, timeout)


@runtime_checkable
class Portable(Protocol):
    """A backend that can measure and run on other devices than this machine."""

    def on(self, device: Device) -> Backend:
        """The same code generator, with `measure` and `load` on the device; reaches it on first use only."""
