"""Addresses of devices."""

from __future__ import annotations

import pytest

from qcompile.errors import UsageError
from qcompile.target.device import Device, parse_device


def test_here() -> None:
    assert parse_device(None) is None
    assert parse_device("local") is None


@pytest.mark.parametrize(
    ("text", "device", "fingerprint"),
    [
        ("rpc://pi.local:9090", Device("pi.local", 9090), "rpc pi.local:9090"),
        ("rpc://10.0.0.7:9090?key=pi5", Device("10.0.0.7", 9090, "pi5"), "rpc pi5"),
        ("rpc://[::1]:9090/?key=pi5&timeout=2.5", Device("::1", 9090, "pi5", timeout=2.5), "rpc pi5"),
        ("rpc://tracker@hub:9190?key=pi5", Device("hub", 9190, "pi5", tracker=True), "rpc pi5"),
    ],
)
def test_read(text: str, device: Device, fingerprint: str) -> None:
    assert parse_device(text) == device
    assert device.fingerprint == fingerprint
    assert parse_device(str(device)) == Device(device.host, device.port, device.key, device.tracker)


@pytest.mark.parametrize(
    "text",
    [
        "pi:9090", "ssh://pi:9090", "rpc://pi", "rpc://:9090", "rpc://pi:99999", "rpc://pi:9090/path", "rpc://pi:0",
        "rpc://me@pi:9090", "rpc://tracker:secret@pi:9090?key=a", "rpc://pi:9090?kee=a", "rpc://pi:9090?timeout=0",
        "rpc://pi:9090?timeout=soon", "rpc://pi:9090?key=a%20b", "rpc://pi:9090?key", "rpc://tracker@hub:9190",
    ],
)  # fmt: skip
def test_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--device"):
        parse_device(text)
