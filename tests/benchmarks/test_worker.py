"""The protocol of the worker processes, with our own engine on a shipped network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import peak
from benchmarks.latency import OtherProcesses, calls_for
from benchmarks.pool import ROOT, Worker, WorkerError


def test_worker_answers_every_line_and_ends_with_its_input(digits: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.worker", "qcompile", str(digits), "--no-amx"],
        input="5\n7\n", capture_output=True, text=True, cwd=ROOT, timeout=120, check=True,
    )  # fmt: skip
    ready, *answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert ready["ready"] is True
    assert ready["amx"] is False
    assert ready["packages"]["apache-tvm"]
    assert len(answers) == 2
    assert all(0 < a["median"] < 1 for a in answers)


def test_pool_stops_a_worker_while_it_is_not_asked(digits: Path) -> None:
    with Worker(["qcompile", str(digits)]) as worker:
        assert worker.time(5) > 0
        assert worker.state() in ("T", None)  # stopped; None without /proc
        assert worker.time(5) > 0
    worker.close()


@pytest.mark.parametrize(
    ("command", "message"),
    [(["qcompile", "/nowhere/x.qc"], "nowhere"), (["nonsense", "x"], "invalid choice")],
    ids=["no artifact", "no engine"],
)
def test_a_worker_that_fails_says_why(command: list[str], message: str) -> None:
    with pytest.raises(WorkerError, match=message):
        Worker(command)


def test_an_interpreter_that_is_not_there_is_named() -> None:
    with pytest.raises(WorkerError, match="nosuchpython"):
        Worker(["peak", "-"], python="/nosuchpython")


def test_what_others_use_leaves_the_workers_out(digits: Path) -> None:
    with Worker(["qcompile", str(digits)]) as worker:
        before = worker.cpu_seconds()
        others = OtherProcesses([worker])
        worker.time(2000)
        used = others.cpus()
        assert used is None or 0 <= used <= (os.cpu_count() or 1) + 0.5
        assert used is None or worker.cpu_seconds() > before


def test_turns_have_bounds() -> None:
    assert calls_for(10.0, 0.4) == 5
    assert calls_for(1e-3, 0.4) == 400
    assert calls_for(0.0, 0.4) == 2000


def test_refused_tile_registers_are_not_granted() -> None:
    ask = (
        "import ctypes, platform\nfrom benchmarks import amx\namx.refuse()\n"
        "if platform.machine() == 'x86_64': ctypes.CDLL(None).syscall(158, 0x1023, 18)\n"
        "print(amx.granted())"
    )
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, cwd=ROOT, timeout=60)
    if "filter was refused" in done.stderr:
        pytest.skip("this system allows no system call filter")
    assert done.stdout.strip() == "False", done.stderr


def test_peak_code_is_dot_products_in_a_loop() -> None:
    code = peak.machine_code()
    products = peak.LOOP_OPS // 128
    assert [code[6 * i : 6 * i + 5] for i in range(8)] == [bytes.fromhex("62920d4050")] * 8
    assert code[6 * 8 : 6 * 8 + 5] == bytes.fromhex("62120d4050")
    back = (-6 * products - 9).to_bytes(4, "little", signed=True)
    assert code[6 * products :] == b"\x48\xff\xcf\x0f\x85" + back + b"\xc5\xf8\x77\xc3"


def test_peak_is_plausible_or_not_available() -> None:
    gops = peak.measure_gops(calls=3)
    if gops is None:
        with pytest.raises(OSError, match=r"vpdpbusd|not permitted|denied"):
            peak.Peak()
    else:
        # One to two instructions a cycle at 1 to 6 GHz.
        assert 128 <= gops <= 2 * 128 * 6
