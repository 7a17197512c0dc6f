"""How long a compilation takes, with nothing known, again, and with another budget: `benchmarks.compile_time`."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.prepare import Preparation
from benchmarks.report import table
from qcompile.target.bench import conditions

RUNS = ("nothing known", "the same again", "another budget")


@dataclass(frozen=True)
class Compilation:
    """Attributes:
    run: one of `RUNS`.
    seconds: of the whole process, by a stopwatch.
    cpu_seconds: of the process and what it started.
    stages: seconds by stage, as `--json` says.
    """

    run: str
    seconds: float
    cpu_seconds: float
    stages: Mapping[str, float]


def compilations(source: Path, calib: Path, target: str, memory: Sequence[str], samples: int) -> list[Compilation]:
    """Three runs of the command line that share a cache, which is empty at first.

    Args:
        memory: the budget of the first two runs, and that of the third.

    Raises:
        SystemExit: a compilation failed.
    """
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = os.environ | {"QCOMPILE_CACHE_DIR": str(folder / "cache")}
        for run, budget in zip(RUNS, (memory[0], *memory), strict=True):
            options = ["--target", target, "--memory", budget, "--calib", str(calib), "--samples", str(samples)]
            out = ["-o", str(folder / "artifact.qc"), "--force", "--json", "--no-progress"]
            started, used = time.perf_counter(), os.times()
            done = subprocess.run(
                [sys.executable, "-m", "qcompile", str(source), *options, *out],
                env=environment, stdout=subprocess.PIPE, check=False,
            )  # fmt: skip
            seconds, now = time.perf_counter() - started, os.times()
            if done.returncode:
                raise SystemExit(f"qcompile {source} ended with exit code {done.returncode}")
            cpu = now.children_user + now.children_system - used.children_user - used.children_system
            found.append(Compilation(run, seconds, cpu, json.loads(done.stdout)["seconds"]))
    return found


def format_compilations(rows: Sequence[Compilation]) -> str:
    """A table with a row for each run, all in seconds."""
    stages = list(dict.fromkeys(stage for row in rows for stage in row.stages))
    lines: list[tuple[str, ...]] = [("run", "s", "CPU s", *stages)]
    lines += [
        (row.run, f"{row.seconds:.0f}", f"{row.cpu_seconds:.0f}", *(f"{row.stages.get(s, 0.0):.0f}" for s in stages))
        for row in rows
    ]
    return table(lines)


def to_json(machine: Mapping[str, Any], network: str, rows: Sequence[Compilation]) -> dict[str, Any]:
    """The file `--json` writes."""
    return {"conditions": dict(machine), "network": network, "runs": [asdict(row) for row in rows]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile three times, print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compile_time", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--network", default="resnet50", help="of benchmarks.networks, or of the pack")
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--memory", default="20MiB,17MiB", help="budgets of weight bytes: of two runs, of the third")
    parser.add_argument("--samples", type=int, default=16, help="calibration samples")
    parser.add_argument("--pack", type=Path, help="folder of the data pack")
    parser.add_argument("--work", type=Path, default=Path("build/bench"), help="folder for models")
    parser.add_argument("--json", type=Path, help="file for all figures and their conditions")
    options = parser.parse_args(arguments)
    memory = options.memory.split(",")
    if len(memory) != 2:
        parser.error(f"--memory takes two budgets, not {options.memory!r}")
    machine, folder = conditions(), options.work / options.network
    made = Preparation(options.network, folder, options.pack, sys.executable)
    folder.mkdir(parents=True, exist_ok=True)
    made.write_source()
    rows = compilations(made.source, made.calib, options.target, memory, options.samples)
    print(format_compilations(rows))
    if options.json is not None:
        options.json.write_text(json.dumps(to_json(machine, options.network, rows), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
