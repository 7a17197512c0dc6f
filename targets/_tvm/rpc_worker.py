"""The process that holds one RPC session: TVM's client may hang or end its process, so it gets its own.

Requests come as tuples (name, arguments…) through a pipe from the process that started this one; answers are
("ok", value) or ("error", text).  See `targets._tvm.rpc` for the other end.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np


class Session:
    """One connected device, its loaded modules and its tensors, by number."""

    def __init__(self) -> None:
        self._remote: Any = None
        self._modules: dict[str, Any] = {}
        self._tensors: dict[int, Any] = {}

    def start(self) -> None:
        """Import what the client needs, so that the time it takes is not the device's."""
        importlib.import_module("tvm.rpc")

    def connect(self, host: str, port: int, key: str, tracker: bool) -> None:
        from tvm import rpc

        if tracker:
            self._remote = rpc.connect_tracker(host, port).request(key, max_retry=1)
        else:
            self._remote = rpc.connect(host, port, key)
        self._device = self._remote.cpu(0)

    def count(self, host: str, port: int, key: str) -> int:
        """Devices of one kind that a tracker knows."""
        from tvm import rpc

        known = rpc.connect_tracker(host, port).summary()
        return sum(server["key"] == f"server:{key}" for server in known["server_info"])

    def describe(self) -> str:
        """What the device says about its processor; empty where its runtime cannot tell."""
        with contextlib.suppress(Exception):
            return str(self._remote.get_function("target.llvm_get_system_cpu")())
        return ""

    def threads(self, number: int) -> None:
        self._remote.get_function("runtime.config_threadpool")(1, number)

    def load(self, files: dict[str, bytes], name: str) -> None:
        """Upload files and load the module among them."""
        for file, content in files.items():
            self._remote.upload(bytearray(content), file)
        self._modules[name] = self._remote.load_module(name)

    def store(self, number: int, array: Any) -> None:
        """Copy an array of bytes to the device, over one of the same size if there is one."""
        import tvm

        held = self._tensors.get(number)
        if held is not None and held.shape[0] == array.size:
            held.copyfrom(array)
        else:
            self._tensors[number] = tvm.runtime.tensor(np.ascontiguousarray(array), device=self._device)

    def free(self, numbers: list[int]) -> None:
        for number in numbers:
            self._tensors.pop(number, None)

    def fetch(self, number: int) -> Any:
        return self._tensors[number].numpy()

    def call(self, module: str, symbol: str, tensors: list[int]) -> None:
        self._modules[module][symbol](*[self._tensors[n] for n in tensors])

    def time(self, module: str, symbol: str, tensors: list[int], number: int, repeat: int) -> list[float]:
        """Seconds of a call on the device's own clock: `repeat` averages over `number` calls."""
        timed = self._modules[module].time_evaluator(symbol, self._device, number=number, repeat=repeat)
        return [float(s) for s in timed(*[self._tensors[n] for n in tensors]).results]


def serve(connection: Connection) -> None:
    """Answer requests until the other end closes."""
    session = Session()
    while True:
        try:
            name, *arguments = connection.recv()
        except EOFError:
            return
        method: Callable[..., Any] = getattr(session, name)
        try:
            answer = ("ok", method(*arguments))
        except Exception as error:
            answer = ("error", f"{type(error).__name__}: {error}")
        connection.send(answer)


def main() -> None:
    """`python -c … FILE-DESCRIPTOR`: serve, then leave without TVM's clean-up, which waits for lost devices."""
    connection = Connection(int(sys.argv[1]))
    # TVM prints; what it prints must not end up among this program's results.
    os.dup2(2, 1)
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        serve(connection)
    os._exit(0)
