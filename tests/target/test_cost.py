"""The cost cache (several processes, kill -9, damage) and the roofline."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from passes.lower.choose_kernels import MARGIN, fastest
from qcompile.errors import StorageError
from qcompile.ir import BATCH, TensorType
from qcompile.pm.registry import find_backend, find_target
from qcompile.target.backend import Measurement
from qcompile.target.bench import AT_A_TIME, measure_missing
from qcompile.target.cost import CostCache, cache_directory, fingerprint, macs_of, roofline
from qcompile.target.model import Target
from qcompile.target.program import Kernel, KernelWork, Layout, ProgramWork

ROOT = Path(__file__).resolve().parents[2]


def conv_work(channels: int = 8, variant: str = "direct") -> KernelWork:
    """A 3×3 convolution from 4 channels on 16×16 pixels."""
    node = (
        "conv2d", (("pad", (1, 1, 1, 1)),), TensorType((BATCH, channels, 16, 16), "i32"),
        (("w", (channels, 4, 3, 3)), ("b", (channels,))), (0,),
    )  # fmt: skip
    return KernelWork((node,), (Layout((4, 16, 16), "u8"),), Layout((channels, 16, 16), "u8"), variant)


def test_what_was_put_is_got_back_under_its_conditions(tmp_path: Path) -> None:
    cache = CostCache(tmp_path, device="this device")
    first, second = conv_work(8), conv_work(16)
    seen = Measurement(median=1.5e-6, p90=2e-6, runs=100, threads=1)
    cache.put(first, "compiler 1", seen, {"governor": "performance"})
    cache.put(first, "compiler 1", Measurement(1e-6, 1e-6, 5, threads=4))
    assert cache.get_many([first, second, first], 1, "compiler 1") == {first.key: seen}
    assert cache.conditions(first, 1, "compiler 1") == {"governor": "performance"}
    assert cache.get_many([first], 2, "compiler 1") == {}
    assert cache.get_many([first], 1, "compiler 2") == {}
    assert cache.get_many([conv_work(8, "other")], 1, "compiler 1") == {}
    assert CostCache(tmp_path, device="another").get_many([first], 1, "compiler 1") == {}
    assert CostCache(tmp_path, device="this device").get_many([first], 4, "compiler 1")[first.key].threads == 4


def test_a_later_measurement_replaces_an_earlier_one(tmp_path: Path) -> None:
    cache = CostCache(tmp_path)
    for median in (2e-6, 1e-6):
        cache.put(conv_work(), "c", Measurement(median, median, 1, 1))
    assert cache.get_many([conv_work()], 1, "c")[conv_work().key].median == 1e-6


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_what_is_no_duration_is_not_stored(tmp_path: Path, bad: float) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        CostCache(tmp_path).put(conv_work(), "c", Measurement(bad, 1.0, 1, 1))


WRITER = """
import sys
from pathlib import Path
from qcompile.ir import BATCH, TensorType
from qcompile.pm.registry import find_backend, find_target
from qcompile.target.backend import Measurement
from qcompile.target.cost import CostCache
from qcompile.target.program import Kernel, KernelWork, Layout, ProgramWork
cache, start, count = CostCache(Path(sys.argv[1]), device="d"), int(sys.argv[2]), int(sys.argv[3])
for i in range(start, start + count):
    work = KernelWork((), (), Layout((1,), "u8"), str(i))
    cache.put(work, "c", Measurement(i + 1.0, i + 1.0, 1, 1))
    print(i, flush=True)
"""


def writer(directory: Path, start: int, count: int) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", WRITER, str(directory), str(start), str(count)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment)


def numbered(count: int) -> list[KernelWork]:
    return [KernelWork((), (), Layout((1,), "u8"), str(i)) for i in range(count)]


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    processes = [writer(tmp_path, start, 100) for start in (0, 100)]
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    found = CostCache(tmp_path, device="d").get_many(numbered(200), 1, "c")
    assert [found[work.key].median for work in numbered(200)] == [i + 1.0 for i in range(200)]


def test_a_killed_process_loses_nothing_it_had_put(tmp_path: Path) -> None:
    process = writer(tmp_path, 0, 100000)
    assert process.stdout is not None
    done = [int(process.stdout.readline()) for _ in range(50)]
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    cache = CostCache(tmp_path, device="d")
    found = cache.get_many(numbered(50), 1, "c")
    assert [found[work.key].median for work in numbered(50)] == [i + 1.0 for i in done]
    cache.put(conv_work(), "c", Measurement(1.0, 1.0, 1, 1))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    cache = CostCache(tmp_path)
    cache.path.write_bytes(b"this is not a database, whatever its name says" * 100)
    with pytest.raises(StorageError, match=f"the cost cache {re.escape(str(cache.path))} cannot be used"):
        cache.get_many([conv_work()], 1, "c")


def test_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QCOMPILE_CACHE_DIR", str(tmp_path / "a"))
    assert cache_directory() == tmp_path / "a"
    assert CostCache().path.parent == tmp_path / "a"
    monkeypatch.delenv("QCOMPILE_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory().name == "qcompile"


def test_the_fingerprint_names_the_processor_and_no_host() -> None:
    assert re.fullmatch(r".+; flags [0-9a-f]{12}; \d+ cores", fingerprint())
    assert socket.gethostname() not in fingerprint()


def test_a_hit_takes_little_time(tmp_path: Path) -> None:
    cache = CostCache(tmp_path)
    works = [conv_work(8, str(i)) for i in range(500)]
    cache.put(works[0], "c", Measurement(1.0, 1.0, 1, 1))
    start = time.perf_counter()
    cache.get_many(works, 1, "c")
    assert time.perf_counter() - start < 1.0


def test_roofline() -> None:
    work = conv_work()
    assert macs_of(work) == 8 * 16 * 16 * 4 * 9
    slow_math = Target("t", "", "", peak_macs_per_second=1e6, bytes_per_second=1e12)
    slow_memory = Target("t", "", "", peak_macs_per_second=1e15, bytes_per_second=1e3)
    assert roofline(work, slow_math) == pytest.approx(8 * 16 * 16 * 36 / 1e6)
    assert roofline(work, slow_memory) == pytest.approx((4 * 256 + 8 * 256 + 8 * 36 + 8 * 4) / 1e3)


def test_operators_without_weights_count_what_they_read() -> None:
    pool = ("sum_pool", (("kernel", (2, 2)),), TensorType((BATCH, 3, 4, 4), "i32"), (), (0,))
    join = ("requant", (("dtype", "u8"),), TensorType((BATCH, 3, 4, 4), "u8"), (("m0", (1,)),), (-1, 0))
    work = KernelWork((pool, join), (Layout((3, 8, 8), "u8"),), Layout((3, 4, 4), "u8"), "")
    assert macs_of(work) == 48 * 4 + 48 * 2


def test_measurements_of_several_days_come_back_at_the_first_ones_clock(tmp_path: Path) -> None:
    cache = CostCache(tmp_path)
    assert cache.clock() == 0.0
    slow_day, quick_day = conv_work(8), conv_work(16)
    cache.put(slow_day, "c", Measurement(2e-6, 2e-6, 1, 1, clock=5e-6))
    cache.put(quick_day, "c", Measurement(3e-6, 3e-6, 1, 1, clock=4e-6))
    found = cache.get_many([slow_day, quick_day], 1, "c")
    assert cache.clock() == 5e-6
    assert found[slow_day.key].median == 2e-6
    assert found[quick_day.key].median == pytest.approx(3.75e-6)
    # What comes later changes nothing that was known: the same command gives the same plan.
    cache.put(conv_work(32), "c", Measurement(1e-6, 1e-6, 1, 1, clock=1e-6))
    assert cache.get_many([slow_day, quick_day], 1, "c") == found


def test_a_program_is_kept_beside_its_kernels(tmp_path: Path) -> None:
    cache = CostCache(tmp_path)
    whole = ProgramWork((conv_work(8).key, conv_work(16).key))
    cache.put(whole, "c", Measurement(2e-6, 2e-6, 1, 1))
    assert cache.get_many([whole], 1, "c")[whole.key].median == 2e-6
    other_order = ProgramWork(tuple(reversed(whole.kernels)))
    assert cache.get_many([other_order, conv_work(8)], 1, "c") == {}


def test_where_weights_lie_is_part_of_what_is_measured() -> None:
    work = conv_work(8)
    assert replace(work, resident=1 << 15).key != replace(work, resident=1 << 24).key


class CountingBackend:
    """Measures a kernel in as many seconds as its variant says."""

    def __init__(self, fails_after: int = 1 << 30) -> None:
        self.measured: list[str] = []
        self.fails_after = fails_after

    def fingerprint(self) -> str:
        return "counting"

    def measure(self, works: Any, threads: int) -> list[Measurement]:
        for kernel, _ in works:
            if len(self.measured) >= self.fails_after:
                raise KeyboardInterrupt
            self.measured.append(kernel.variant)
        return [Measurement(float(kernel.variant), 1.0, 1, threads) for kernel, _ in works]


def test_what_was_measured_before_an_interruption_is_not_measured_again(tmp_path: Path) -> None:
    cache, shown = CostCache(tmp_path), []
    works: dict[str, Any] = {}
    for number in range(2 * AT_A_TIME + 3):
        work = conv_work(8, str(number))
        works[work.key] = (work, Kernel("k", (), (), str(number)), None)

    def progress(task: str, done: int, total: int) -> None:
        shown.append((task, done, total))

    killed = CountingBackend(fails_after=AT_A_TIME + 2)
    with pytest.raises(KeyboardInterrupt):
        measure_missing(works, killed, cache, 1, progress)  # type: ignore[arg-type]
    again = CountingBackend()
    found = measure_missing(works, again, cache, 1, progress)  # type: ignore[arg-type]
    assert (len(found), found.fresh) == (len(works), AT_A_TIME + 3)
    assert [found[key].median for key in works] == [float(n) for n in range(len(works))]
    # The batch that was interrupted is lost, the one before is not.
    assert again.measured == [str(n) for n in range(AT_A_TIME, len(works))]
    assert shown[-1] == ("measure", AT_A_TIME + 3, AT_A_TIME + 3)
    noted = cache.conditions(next(iter(works.values()))[0], 1, "counting")
    assert noted is not None and {"date", "load_average", "usable_cpus", "resident"} <= set(noted)
    assert measure_missing(works, CountingBackend(fails_after=0), cache, 1, progress).fresh == 0  # type: ignore[arg-type]


def test_another_implementation_must_be_clearly_faster() -> None:
    offered = ("first", "second", "third")
    assert fastest(offered, {}) == "first"
    assert fastest(offered, {"first": 1.0, "second": 1.0 - MARGIN / 2, "third": 2.0}) == "first"
    assert fastest(offered, {"first": 1.0, "second": 0.9, "third": 0.8}) == "third"
    # What was not measured is not known to be slower.
    assert fastest(offered, {"second": 0.9, "third": 0.9}) == "first"


def test_targets_share_no_measurements() -> None:
    """Kernels of one name are other code on another target; AMX's plain kernels are too, for what else they may use."""
    backends = [find_backend(find_target(name)) for name in ("x86-vnni", "x86-amx", "x86-avx2", "aarch64-neon", "c")]
    assert len({backend.fingerprint() for backend in backends}) == len(backends)
