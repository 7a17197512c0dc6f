"""The threads that share loops: every part runs once, whoever calls, whoever sleeps, and after a fork."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from qcompile.errors import ArtifactError
from targets._tvm import threads as module
from targets._tvm.cross import run_compiler
from targets._tvm.threads import HOOK, THREADS, Team, connect, write_threads


class Group(ctypes.Structure):
    _fields_ = (("barrier", ctypes.c_void_p), ("parts", ctypes.c_int))


PART = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.POINTER(Group), ctypes.c_void_p)
LAUNCH = ctypes.CFUNCTYPE(ctypes.c_int, PART, ctypes.c_void_p, ctypes.c_int)


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Team:
    folder = tmp_path_factory.mktemp("team")
    write_threads({}, folder)
    return Team(folder / THREADS)


def launch(team: Team, part: Callable[[int, int], int], data: int = 0, *, forget: bool = True) -> int:
    """Run a loop; by default as if no thread had waited for another one before, as threads of Python do."""
    if forget:
        team._library.qcompile_use_threads(team._threads)
    call = PART(lambda number, group, given: part(number, group.contents.parts) if (given or 0) == data else 9)
    return int(LAUNCH(team.launcher)(call, data, 0))


def ran(team: Team) -> list[tuple[int, int]]:
    """Parts of one loop, in order, each with how many it was told there are."""
    seen: list[tuple[int, int]] = []

    def part(number: int, parts: int) -> int:
        seen.append((number, parts))
        return 0

    assert launch(team, part, data=4096) == 0
    return sorted(seen)


def test_every_part_runs_once(team: Team) -> None:
    for threads in (1, 2, 3, 7, 2, 16, 1):
        team.use(threads)
        for _ in range(100):
            assert ran(team) == [(i, threads) for i in range(threads)]


def test_others_than_the_caller_take_part(team: Team) -> None:
    team.use(2)
    both = threading.Barrier(2, timeout=30)
    runners: set[int] = set()

    def part(_: int, __: int) -> int:
        runners.add(threading.get_ident())
        # Passed only by two threads at once.
        both.wait()
        return 0

    assert launch(team, part) == 0
    assert len(runners) == 2
    assert threading.get_ident() in runners


def test_a_part_that_fails_fails_the_loop_and_no_later_one(team: Team) -> None:
    for threads in (1, 2):
        team.use(threads)
        assert launch(team, lambda number, parts: int(number == parts - 1)) != 0
        assert launch(team, lambda number, parts: 0) == 0


def test_beside_lost_processors_the_caller_computes_alone_for_a_while(team: Team) -> None:
    team.use(2)
    told: list[int] = []
    both = threading.Barrier(2, timeout=30)

    def part(number: int, parts: int) -> int:
        told.append(parts)
        if parts == 2:
            # The other one has begun its part and then has no processor for 20 ms.
            both.wait()
            time.sleep(0.02 * (threading.get_ident() != caller))
        return 0

    caller = threading.get_ident()
    assert launch(team, part) == 0
    # Once may be an accident.
    for _ in range(9):
        assert launch(team, part, forget=False) == 0
    assert told == [2, 2, 2, 2, *[1] * 8]
    told.clear()
    # Sixteen times as long as that is over.
    time.sleep(2)
    assert launch(team, part, forget=False) == 0
    assert told == [2, 2]


def test_callers_at_once_and_inside_a_loop(team: Team) -> None:
    team.use(2)
    counted: Counter[int] = Counter()
    whole: list[bool] = []

    def calls(own: int) -> None:
        for _ in range(200):
            seen: list[int] = []

            def part(number: int, parts: int, seen: list[int] = seen) -> int:
                seen.extend([number] * (2 // parts))
                # Inside of a shared loop nobody is left to share another one.
                inner: list[int] = []
                assert launch(team, lambda n, p: inner.append(p) or 0) == 0
                whole.append(inner in ([1], [2, 2]) if parts == 1 else inner == [1])
                return 0

            assert launch(team, part) == 0
            counted[own] += len(seen)

    callers = [threading.Thread(target=calls, args=(i,)) for i in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert counted == {0: 400, 1: 400, 2: 400}
    assert all(whole)


def test_threads_without_work_sleep_and_wake(team: Team) -> None:
    team.use(4)
    for _ in range(5):
        ran(team)
        time.sleep(0.05)
        before = time.process_time()
        time.sleep(0.2)
        # Three threads that did not sleep would have used up to 0.4 s of two processors.
        assert time.process_time() - before < 0.1
    assert ran(team) == [(i, 4) for i in range(4)]


FORKED = """
import os, sys
from pathlib import Path
sys.path[:0] = {path!r}
import test_team
if not {told}:
    os.register_at_fork = lambda **_: None
team = test_team.Team(Path({file!r}))
team.use(3)
assert len(test_team.ran(team)) == 3
child = os.fork()
if child == 0:
    for _ in range(50):
        assert test_team.ran(team) == [(0, 3), (1, 3), (2, 3)]
    # Threads of the system: this one, and those that the loops started.
    os._exit(len(os.listdir("/proc/self/task")))
_, status = os.waitpid(child, 0)
assert len(test_team.ran(team)) == 3
print(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.parametrize(("told", "threads"), [(True, 3), (False, 1)])
def test_a_forked_child_starts_threads_of_its_own_or_does_all_itself(told: bool, threads: int, tmp_path: Path) -> None:
    # A child that is not told takes its parent's threads for alive: they never begin a part, and it must not wait.
    write_threads({}, tmp_path)
    root = Path(__file__).parents[2]
    script = FORKED.format(path=[str(Path(__file__).parent), str(root)], told=told, file=str(tmp_path / THREADS))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, str(threads)), done.stderr


def test_equal_bytes(tmp_path: Path) -> None:
    write_threads({}, tmp_path)
    first = (tmp_path / THREADS).read_bytes()
    module._compiled.cache_clear()
    write_threads({}, tmp_path)
    assert (tmp_path / THREADS).read_bytes() == first


def test_a_library_without_its_threads_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A library that has the hook, and nothing else.
    source = tmp_path / "hook.c"
    source.write_text(f"void *{HOOK};")
    run_compiler(["cc", "-shared", "-fPIC", str(source), "-o", str(tmp_path / "hook.so")], "the hook")
    monkeypatch.setattr(module, "_team", [])
    with pytest.raises(ArtifactError, match=r"has no threads\.so: another version") as error:
        connect(ctypes.CDLL(str(tmp_path / "hook.so")), tmp_path)
    assert error.value.hint == "compile the model again"
