"""A device that is this machine, one that never answers, and a small artifact."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from rpc_servers import DIGITS, KEY, server

from qcompile import api, artifact
from qcompile.artifact import Artifact


@pytest.fixture(scope="session")
def box() -> Iterator[str]:
    """The address of a server that runs all the time."""
    running = server()
    yield f"rpc://127.0.0.1:{running.port}?key={KEY}"
    running.stop()


@pytest.fixture
def mute() -> Iterator[int]:
    """A port where somebody listens and never answers."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen(4)
        yield held.getsockname()[1]


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Portable C, which runs wherever there is a compiler."""
    path = tmp_path_factory.mktemp("rpc") / "digits.qc"
    api.compile(
        DIGITS / "digits_resnet.onnx", target="c", uniform="w8a8", calib=DIGITS / "calib.npz", samples=32, out=path,
        measure=False,
    )  # fmt: skip
    return artifact.load(path)
