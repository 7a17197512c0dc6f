"""Servers and trackers of TVM's RPC as processes of their own."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

DIGITS = Path(__file__).parents[2] / "models" / "digits_resnet"
KEY = "box"

SERVER = """
import sys
from tvm.rpc.server import PopenRPCServerState
host, first, tracker, key = sys.argv[1:]
address = (tracker.split(":")[0], int(tracker.split(":")[1])) if tracker else None
state = PopenRPCServerState(host, int(first), int(first) + 200, tracker_addr=address, key=key, silent=True)
print(state.port, flush=True)
state.thread.join()
"""
TRACKER = """
import sys
from tvm.rpc.tracker import PopenTrackerServerState
state = PopenTrackerServerState(sys.argv[1], int(sys.argv[2]), int(sys.argv[2]) + 200, silent=True)
print(state.port, flush=True)
state.thread.join()
"""


class Process:
    """A server or tracker that has told its port."""

    def __init__(self, code: str, *arguments: str, prefix: Sequence[str] = ()) -> None:
        self._process = subprocess.Popen(
            [*prefix, sys.executable, "-c", code, *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self.stop()
        self.port = int(line or 0)

    def stop(self) -> None:
        """End it and whatever it started."""
        if self._process.stdout is not None:
            self._process.stdout.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def first_port() -> str:
    return str(random.randrange(20000, 60000))


def server(key: str = KEY, tracker: str = "", host: str = "127.0.0.1", prefix: Sequence[str] = ()) -> Process:
    return Process(SERVER, host, first_port(), tracker, key, prefix=prefix)
