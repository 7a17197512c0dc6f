"""Devices behind TVM's RPC: the same integers, measured costs, and what happens when they fail."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rpc_servers import DIGITS, KEY, TRACKER, Process, first_port, server
from typer.testing import CliRunner

from qcompile import api
from qcompile.artifact import Artifact
from qcompile.cli.app import app
from qcompile.errors import DeviceError
from qcompile.pm.registry import find_backend, find_target
from qcompile.target.bench import measure_missing
from qcompile.target.cost import CostCache
from qcompile.target.device import parse_device
from qcompile.target.program import Kernel, KernelWork, Program, work_of
from qcompile.verification import lower_again
from targets._tvm import rpc_backend
from targets._tvm.rpc import release

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler to build what devices load")


def works_of(artifact: Artifact) -> dict[str, tuple[KernelWork, Kernel, Program]]:
    program = lower_again(artifact)
    found: dict[str, tuple[KernelWork, Kernel, Program]] = {}
    for kernel in program.kernels:
        work = work_of(kernel, program)
        found[work.key] = (work, kernel, program)
    return found


def backend_on(artifact: Artifact, address: str) -> Any:
    return artifact.backend.on(parse_device(address))  # type: ignore[attr-defined]


def test_verified_and_timed_over_rpc(box: str, digits: Artifact) -> None:
    found = api.verify(digits, device=box)
    assert found["differing_integers"] == 0
    assert found["inputs"] == len(next(iter(digits.golden_inputs.values())))
    timed = api.bench(digits, device=box)
    assert timed["median_ms"] > 0


def test_run_gives_what_it_gives_here(box: str, digits: Artifact) -> None:
    with np.load(DIGITS / "eval.npz") as data:
        name = digits.graph.inputs[0].name
        x = {name: data[name][:5]}
    here, there = api.run(digits, x), api.run(digits, x, device=box)
    assert all(np.array_equal(here[output], there[output]) for output in here)


def test_latency_budget_on_a_device(box: str, tmp_path: Path) -> None:
    """A budget that is easily kept: what is tested is that it was kept as measured there."""
    out = tmp_path / "a.qc"
    arguments = [
        "compile", str(DIGITS / "digits_resnet.onnx"), "--target", "c", "--latency", "500ms", "--device", box,
        "--calib", str(DIGITS / "calib.npz"), "--samples", "32", "-o", str(out), "--json",
    ]  # fmt: skip
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert 0 < result["measured_ms"] <= 500
    measured = json.loads((out / "measurements.json").read_text())
    assert measured["device"] == f"rpc {KEY}"
    plan = json.loads((out / "plan.json").read_text())
    assert plan["costs"] == "measured"


class TestFailures:
    """Each is a DeviceError (exit code 6) that says what happened."""

    def test_nobody_there(self, digits: Artifact) -> None:
        with pytest.raises(DeviceError, match=r"cannot connect to rpc://127\.0\.0\.1:9") as raised:
            digits.on(parse_device("rpc://127.0.0.1:9")).run_int(digits.golden_inputs)
        assert raised.value.exit_code == 6
        assert "rpc_server" in str(raised.value.hint)

    def test_no_answer(self, mute: int, digits: Artifact) -> None:
        with pytest.raises(DeviceError, match="did not answer 'connect' within 1 s"):
            digits.on(parse_device(f"rpc://127.0.0.1:{mute}?timeout=1")).run_int(digits.golden_inputs)

    def test_wrong_key(self, box: str, digits: Artifact) -> None:
        release()  # a server has one user at a time
        with pytest.raises(DeviceError, match="its key another one"):
            digits.on(parse_device(box.replace(KEY, "other"))).run_int(digits.golden_inputs)

    def test_code_for_another_machine(self, box: str, digits: Artifact) -> None:
        linker = "aarch64-linux-gnu-gcc"
        if shutil.which(linker) is None or os.uname().machine == "aarch64":
            pytest.skip(f"needs {linker} and a machine that is none")
        backend: Any = find_backend(find_target("aarch64-neon"))
        works = [(replace(kernel, variant=""), program) for _, kernel, program in works_of(digits).values()]
        with pytest.raises(DeviceError, match="cannot load the code"):
            backend.on(parse_device(box)).measure(works[:1], 1)

    def test_target_without_devices(self, digits: Artifact) -> None:
        done = CliRunner().invoke(
            app, ["compile", str(DIGITS / "digits_resnet.onnx"), "--target", "reference", "--device", "rpc://a:1"]
        )
        assert done.exit_code == 6
        assert "runs on this machine only" in done.stderr


def test_lost_half_way_keeps_what_was_measured(
    digits: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    works = dict(list(works_of(digits).items())[:4])
    costs = CostCache(tmp_path, device="rpc box")
    first, original, calls = server(), rpc_backend.time_kernel, []

    def dying(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            first.stop()
        return original(*arguments)

    monkeypatch.setattr(rpc_backend, "time_kernel", dying)
    backend = backend_on(digits, f"rpc://127.0.0.1:{first.port}?key={KEY}&timeout=20")
    with pytest.raises(DeviceError, match="rpc://"):
        measure_missing(works, backend, costs, 1, lambda *_: None)
    described = [work for work, _, _ in works.values()]
    assert len(costs.get_many(described, 1, backend.fingerprint())) == 2
    # Another device of the kind takes up where the lost one stopped.
    second = server()
    try:
        backend = backend_on(digits, f"rpc://127.0.0.1:{second.port}?key={KEY}")
        assert measure_missing(works, backend, costs, 1, lambda *_: None).fresh == 2
    finally:
        second.stop()


@pytest.fixture
def tracker() -> Iterator[str]:
    """Two devices of the kind `twin` behind a tracker."""
    pytest.importorskip("tornado", reason="TVM's tracker needs tornado")
    running = [Process(TRACKER, "127.0.0.1", first_port())]
    address = f"127.0.0.1:{running[0].port}"
    running += [server("twin", address) for _ in range(2)]
    yield f"rpc://tracker@{address}?key=twin"
    for one in running:
        one.stop()


def test_devices_behind_a_tracker_share_the_work(
    tracker: str, digits: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, served, both = rpc_backend.time_kernel, [], threading.Event()

    def noted(remote: Any, *arguments: Any) -> Any:
        served.append(id(remote))
        if len(set(served)) == 2:
            both.set()
        # The first device waits for the other's first kernel, or it might do all of them while that one connects.
        both.wait(60)
        return original(remote, *arguments)

    monkeypatch.setattr(rpc_backend, "time_kernel", noted)
    works = [(kernel, program) for _, kernel, program in works_of(digits).values()]
    found = backend_on(digits, tracker).measure(works, 1)
    assert len(found) == len(works)
    assert all(m.median > 0 for m in found)
    assert len(served) == len(works)
    assert len(set(served)) == 2
    with pytest.raises(DeviceError, match="knows no device of the kind 'other'"):
        backend_on(digits, tracker.replace("twin", "other")).measure(works[:1], 1)


@contextmanager
def namespace(name: str) -> Iterator[str]:
    """A network namespace joined to this one by a pair of virtual interfaces; its address."""
    commands = [
        f"ip netns add {name}", f"ip link add {name}a type veth peer name {name}b", f"ip link set {name}b netns {name}",
        f"ip addr add 10.213.7.1/30 dev {name}a", f"ip link set {name}a up",
        f"ip netns exec {name} ip addr add 10.213.7.2/30 dev {name}b", f"ip netns exec {name} ip link set {name}b up",
    ]  # fmt: skip
    try:
        for command in commands:
            done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"no network namespaces here: {command}: {done.stderr.strip()}")
        yield "10.213.7.2"
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", f"{name}a"], capture_output=True, check=False)


@pytest.mark.skipif(shutil.which("ip") is None, reason="no ip command to make a network namespace with")
@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
def test_device_in_another_network_namespace(digits: Artifact) -> None:
    name = f"qc{os.getpid() % 10**6}"
    with namespace(name) as host:
        running = server(host=host, prefix=["ip", "netns", "exec", name])
        try:
            # Here nobody listens at that port.
            with pytest.raises(DeviceError, match="cannot connect"):
                digits.on(parse_device(f"rpc://127.0.0.1:{running.port}?key={KEY}")).run_int(digits.golden_inputs)
            remote = digits.on(parse_device(f"rpc://{host}:{running.port}?key={KEY}"))
            assert remote.check_goldens() > 0
        finally:
            running.stop()
