"""Time qcompile beside its peers, batch 1: `python -m benchmarks.latency`.  See README.md in this folder."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks import contenders, report
from benchmarks.conditions import busy_seconds, conditions, cpu_flags
from benchmarks.contenders import Contender
from benchmarks.pool import ROOT, Worker, WorkerError
from benchmarks.prepare import PREPARED, pack_networks

IMAGENET = ("resnet18", "resnet50", "mobilenetv2")
ROUNDS, QUICK_ROUNDS = 9, 3
TURN_SECONDS, QUICK_TURN_SECONDS = 0.4, 0.15
CALLS = (5, 2000)
"""Least and most calls of a turn."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=(__doc__ or "").split("\n")[0])
    made.add_argument("--networks", help="names, separated by commas; by default all")
    made.add_argument("--engines", default="", help="beginnings of row names; by default all")
    made.add_argument("--threads", default="1", help="thread counts, separated by commas")
    made.add_argument("--pack", type=Path, help="folder of the data pack; adds its convolutional networks")
    made.add_argument("--rounds", type=int, help=f"turns of each engine; {ROUNDS}, with --quick {QUICK_ROUNDS}")
    made.add_argument("--quick", action="store_true", help="fewer and shorter turns")
    made.add_argument("--tuned", action="store_true", help="qcompile: choose kernels by measuring them")
    made.add_argument("--plans", action="store_true", help="qcompile: also planned bit widths (implies --tuned)")
    made.add_argument("--isa", choices=sorted(contenders.CAPPED), help="compare on what this instruction set offers")
    made.add_argument("--busy", type=int, default=0, help="other processes that compute all the time meanwhile")
    made.add_argument("--peer-python", default=sys.executable, help="interpreter of the peers' environment")
    made.add_argument("--work", type=Path, default=Path("build/bench"), help="folder for models and artifacts")
    made.add_argument("--no-prepare", action="store_true", help="time what an earlier run has prepared")
    made.add_argument("--json", type=Path, help="file for all figures and their conditions")
    return made


def prepare(network: str, options: argparse.Namespace) -> str | None:
    """Make a network's files in a process of its own; what went wrong, or None."""
    command = [sys.executable, "-m", "benchmarks.prepare", network, str((options.work / network).resolve())]
    command += ["--peer-python", options.peer_python]
    command += [f"--{name}" for name in ("tuned", "plans") if getattr(options, name)]
    if options.isa is not None:
        command += ["--isa", options.isa]
    if options.pack is not None:
        command += ["--pack", str(options.pack.resolve())]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    said = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
    return said[-1] if done.returncode else None


def calls_for(seconds: float, turn: float) -> int:
    """How many calls of about `seconds` fill a turn."""
    return int(min(CALLS[1], max(CALLS[0], turn / max(seconds, 1e-9))))


def start(contender: Contender, folder: Path, threads: int, peer_python: str) -> Worker:
    """Raises WorkerError where the contender does not run here."""
    model = contender.find(folder)
    if model is None:
        raise WorkerError("not prepared")
    command = [contender.engine, str(model.resolve()), "--threads", str(threads), "--precision", contender.precision]
    if not contender.amx:
        command.append("--no-amx")
    at_home = contender.is_ours or contender is contenders.PEAK
    return Worker(command, sys.executable if at_home else peer_python, contender.environment)


class OtherProcesses:
    """How many CPUs everything but these workers uses, from now on."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._workers = workers
        self._start, self._before = time.monotonic(), self._used()

    def _used(self) -> float | None:
        busy = busy_seconds()
        return None if busy is None else busy - sum(worker.cpu_seconds() for worker in self._workers)

    def cpus(self) -> float | None:
        """On average; None where the system does not tell."""
        used = self._used()
        if used is None or self._before is None:
            return None
        return max(0.0, used - self._before) / (time.monotonic() - self._start)


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Have so many other processes compute all the time."""
    with ExitStack() as stack:
        for _ in range(processes):
            other = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            stack.callback(other.kill)
        yield


def race(
    network: str,
    folder: Path,
    entrants: Sequence[Contender],
    threads: int,
    *,
    rounds: int,
    turn: float,
    peers: str,
    capped: bool = False,
) -> report.Result:
    """Time the contenders in turns, round after round; `capped` where they may not use the whole processor."""
    prepared = json.loads((folder / PREPARED).read_text())
    rows = [report.Row(c, note=prepared["notes"].get(c.model, "")) for c in entrants]
    result = report.Result(network, threads, prepared["macs"], rows)
    with ExitStack() as stack:
        running: list[tuple[report.Row, Worker, int]] = []
        for row in rows:
            try:
                worker = stack.enter_context(start(row.contender, folder, threads, peers))
            except WorkerError as error:
                row.note = row.note or str(error)[:100]
                continue
            if row.contender.find(folder) != folder / row.contender.model:
                row.note = f"runs {row.contender.instead}; {row.note}"
            row.amx = worker.ready["amx"]
            row.facts = {key: worker.ready[key] for key in ("packages", "facts", "memory")}
            running.append((row, worker, calls_for(worker.ready["seconds"], turn)))
        try:
            # The loop of dot products has 512 bits; a share of it says nothing about less.
            peak = None if capped else stack.enter_context(start(contenders.PEAK, folder, 1, peers))
        except WorkerError:
            peak = None
        workers = [worker for _, worker, _ in running] + ([] if peak is None else [peak])
        others = OtherProcesses(workers)
        for _ in range(rounds):
            result.load.append(os.getloadavg()[0])
            for row, worker, calls in running:
                row.seconds.append(worker.time(calls))
            if peak is not None:
                result.peak_gops.append(peak.ready["facts"]["ops"] / peak.time(50) * 1e-9)
        result.others = others.cpus()
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare, race, print."""
    options = parser().parse_args(arguments)
    named = [name for name in (options.networks or "").split(",") if name]
    networks = named or [*IMAGENET, *(pack_networks(options.pack) if options.pack is not None else ())]
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    turn = QUICK_TURN_SECONDS if options.quick else TURN_SECONDS
    entrants = contenders.chosen(cpu_flags(), [name for name in options.engines.split(",") if name], options.isa)
    if not options.plans:
        entrants = [c for c in entrants if c.model not in contenders.PLANNED]
    machine, results, failed = {**conditions(), "busy": options.busy}, [], []
    print(json.dumps(machine), flush=True)
    for network in networks:
        if not options.no_prepare and (problem := prepare(network, options)):
            failed.append(f"{network}: {problem}")
            continue
        for threads in map(int, options.threads.split(",")):
            with busy(options.busy):
                result = race(
                    network, options.work / network, entrants, threads, rounds=rounds, turn=turn,
                    peers=options.peer_python, capped=options.isa is not None,
                )  # fmt: skip
            results.append(result)
            print(f"\n{report.format_result(result)}", flush=True)
            if options.json is not None:
                options.json.write_text(json.dumps(report.to_json(machine, results), indent=1))
    if results:
        print(f"\n### qcompile beside the best int8 peer\n\n{report.format_summary(results)}")
    for line in failed:
        print(f"not prepared: {line}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
