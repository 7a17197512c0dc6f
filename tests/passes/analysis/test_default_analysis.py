"""The default analysis as a whole: killed at any moment it resumes with the same bytes; memory whatever the samples."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from estimator_nets import calibrated, context

from qcompile import pipelines
from qcompile.pm.facts import CANDIDATES, INTERACTIONS, LOSS, SENSITIVITY, VALIDITY
from qcompile.pm.manager import PassManager
from qcompile.pm.notes_json import notes_to_json
from qcompile.pm.registry import find_pass

MEASURED = [name for name in pipelines.ANALYSIS if name not in ("group-layers", "estimate-cost")]
NOTES = (CANDIDATES, SENSITIVITY, INTERACTIONS, LOSS, VALIDITY)
SMALL = {"measure-output-gram": {"batch": 2}, "check-prediction": {"plans": 6, "samples": 10, "batch": 5}}


def analyse(folder: Path | None) -> bytes:
    """All that the analysis notes, from the start or from what lies in a folder."""
    passes = [find_pass(name)(**SMALL.get(name, {})) for name in MEASURED]
    notes = PassManager(passes).run(calibrated(), context(folder)).graph.notes
    return json.dumps(notes_to_json(notes, NOTES)).encode()


def in_a_child(work: Callable[[], None], cpu_seconds: float = 0.0) -> tuple[int, float]:
    """Run in a forked process, which the kernel kills after so much CPU time of its own; (signal, CPU seconds)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads: there is one
        child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGPROF, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
            work()
            os._exit(0)
        finally:
            os._exit(1)
    _, status, used = os.wait4(child, 0)
    return (os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)), used.ru_utime + used.ru_stime


def test_killed_at_random_moments_it_resumes_with_the_same_bytes(tmp_path: Path) -> None:
    whole = analyse(None)
    ended, seconds = in_a_child(lambda: (tmp_path / "whole").write_bytes(analyse(tmp_path / "one")) and None)
    assert ended == 0
    assert (tmp_path / "whole").read_bytes() == whole
    kept = tmp_path / "kept"
    rng = np.random.default_rng(0)
    kills = [in_a_child(lambda: analyse(kept) and None, seconds * rng.uniform(0.05, 0.9))[0] for _ in range(6)]
    assert kills.count(signal.SIGPROF) >= 3  # later ones may find all the work done and end before
    assert analyse(kept) == whole


SCRIPT = """
    import resource, sys
    import numpy as np
    from passes.analysis.calibrate_ranges import CalibrateRanges
    from qcompile.ir import GraphBuilder, TensorType
    from qcompile.pm.base import PassContext
    from qcompile.pm.manager import PassManager
    from qcompile.pm.registry import find_pass
    from qcompile.target.model import Target

    COUNT, SIZE = int(sys.argv[1]), 96

    def net():
        rng = np.random.default_rng(0)
        b = GraphBuilder("net", "float")
        h = b.input("x", TensorType((-1, 3, SIZE, SIZE), "f32"))
        for i, (rows, columns) in enumerate(((4, 3), (4, 4))):
            w = rng.normal(size=(rows, columns, 3, 3)).astype(np.float32)
            h = b.add("conv2d", [h], name=f"c{i}", consts={"w": w}, attrs={"stride": (2, 2)})
            h = b.add("clip", [h], name=f"r{i}", attrs={"lo": 0.0})
        h = b.add("reduce_mean", [h], name="mean", attrs={"axes": (2, 3), "keepdims": 0})
        b.output("y", b.add("linear", [h], name="fc", consts={"w": rng.normal(size=(5, 4)).astype(np.float32)}))
        return b.build()

    def stream(count):
        def again():
            for start in range(0, count, 16):
                rng = np.random.default_rng(start)
                yield {"x": rng.normal(size=(16, 3, SIZE, SIZE)).astype(np.float32)}
        return again

    target = Target("none", "", "", weight_bits=(3, 8), act_bits=(4, 8))
    ctx = PassContext(target, calibration=stream(COUNT), holdout=stream(64))
    graph = CalibrateRanges().run(net(), ctx).graph
    PassManager([find_pass(name)() for name in sys.argv[2:]]).run(graph, ctx)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_number_of_samples() -> None:
    """Peaks of whole processes: 512 images of 108 KiB would be 47 MiB more than 64 of them."""

    def peak(count: int) -> int:
        command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(count), *MEASURED]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3])
        return int(done.stdout)

    few, many = peak(64), peak(512)
    assert many - few < 12 * 1024, (few, many)
