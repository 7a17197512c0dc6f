"""One compilation from the model file to the artifact, with its stages and warnings."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qcompile import artifact as artifacts
from qcompile.artifact import Artifact
from qcompile.artifact.copying import publish_copy
from qcompile.compiler import Budgets, Compiler, Planned, Progress, keep_latency, stream
from qcompile.data import Dataset, load_batches, split_holdout
from qcompile.emission import Source, fingerprint, record_of, save
from qcompile.errors import InfeasibleError, UsageError
from qcompile.pm.base import Batches
from qcompile.pm.facts import Bits
from qcompile.pm.instruments import Dump, Logging
from qcompile.pm.registry import find_backend, find_target, host_features
from qcompile.target.cost import CostCache
from qcompile.target.cost import fingerprint as device_fingerprint
from qcompile.target.model import Target
from qcompile.target.program import Program
from qcompile.units import format_bytes, parse_bits

log = logging.getLogger("qcompile")

SYNTHETIC_SAMPLES = 32

MEASURE_ROUNDS = 3
"""Medians taken of a built artifact."""


def silent(task: str, done: int, total: int) -> None:
    """No progress."""


@dataclass
class CompileResult:
    """What `compile` returns; `to_json` is what `qcompile --json` prints.

    Attributes:
        artifact: ready to run.
        predicted_ms: sum of kernel costs, corrected by measurements; None where nothing was estimated.
        measured_ms: median end to end on this machine; None where it cannot run here or measuring was switched off.
        weight_bytes: packed weights of all layers.
        arena_bytes: activations at the peak.
        solver: status, objective, bound and gap of the integer program.
        bits: layer → (weight bits, activation bits).
        warnings: what the user should know.
        evaluation: of the evaluation data, where it was given.
        seconds: by stage.
    """

    artifact: Artifact
    predicted_ms: float | None
    measured_ms: float | None
    weight_bytes: int
    arena_bytes: int
    solver: dict[str, Any]
    bits: dict[str, Bits]
    warnings: list[str] = field(default_factory=list)
    evaluation: dict[str, Any] | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "artifact": str(self.artifact.path),
            "predicted_ms": self.predicted_ms,
            "measured_ms": self.measured_ms,
            "weight_bytes": self.weight_bytes,
            "arena_bytes": self.arena_bytes,
            "solver": {key: self.solver.get(key) for key in ("status", "objective", "bound", "gap")},
            "bits": {layer: list(pair) for layer, pair in self.bits.items()},
            "warnings": self.warnings,
            "evaluation": self.evaluation,
            "seconds": {stage: round(value, 2) for stage, value in self.seconds.items()},
        }


@dataclass
class Job:
    """The arguments of `qcompile.api.compile`, parsed; `run` does the work.

    A job runs once.
    """

    model: Any
    target: str
    budgets: Budgets
    uniform: str | None
    plan: Path | None
    calib: Any
    eval_data: Any
    out: Path | None
    example: Any
    shapes: Mapping[str, Sequence[int]] | None
    pins: Mapping[str, Bits]
    weight_bits: tuple[int, ...] | None
    act_bits: tuple[int, ...] | None
    passes: str | None
    dump: Path | None
    samples: int | None
    seed: int
    threads: int
    overwrite: bool
    measure: bool
    progress: Progress
    warnings: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self) -> CompileResult:
        """Raises QcompileError; then nothing is left half-written."""
        limited = self.budgets.latency is not None or self.budgets.memory is not None
        if (self.uniform is not None) + (self.plan is not None) + limited > 1:
            raise UsageError("give --uniform, or --plan, or budgets, not several", hint="a given plan has no freedom")
        uniform = None if self.uniform is None else parse_bits(self.uniform)
        destination = self.out or Path(tempfile.mkdtemp(prefix="qcompile-")) / "model.qc"
        artifacts.refuse_existing(destination, self.overwrite)
        target = find_target(self.target)
        backend = find_backend(target)
        source, fit, held, evaluation = self._inputs()
        local = self.measure and can_run(target)
        if not local:
            self.warnings.append(f"nothing was measured: costs on {target.name} are a roofline estimate")
        compiler = Compiler(
            source.graph, target, backend, fit, held, CostCache() if local else None,
            labels=getattr(fit, "has_labels", False), threads=self.threads, seed=self.seed, progress=self.progress,
            # What random inputs say about weights is worse than nothing.
            rounding="nearest" if self.calib is None else "gptq",
            passes=self.passes, pins=self.pins, weight_bits=self.weight_bits, act_bits=self.act_bits,
            instruments=[Logging()] if self.dump is None else [Logging(), Dump(self.dump)],
        )  # fmt: skip
        given = uniform is not None or self.plan is not None
        with self._stage("calibrate" if given else "analyse"):
            compiler.prepare(analyse=not given)
        samples, digest = fingerprint(fit)
        calibration = artifacts.Calibration(getattr(fit, "name", "synthetic"), samples, digest)
        with tempfile.TemporaryDirectory(prefix="qcompile-") as scratch:
            staged = Path(scratch) / "model.qc"

            def build(planned: Planned, program: Program, predicted: float | None) -> float | None:
                self._check_arena(program, target)
                record = record_of(
                    compiler, source, planned, program, self.budgets, uniform=self.uniform, predicted=predicted,
                    calibration=calibration, warnings=tuple(self.warnings),
                )  # fmt: skip
                with self._stage("build"):
                    save(staged, compiler, source, planned, program, record)
                return self._measure(staged) if local else None

            if not given:
                planned, program, predicted = keep_latency(compiler, self.budgets, build)
            else:
                planned = compiler.uniform(uniform) if uniform else compiler.from_file(self.plan or Path())
                program = compiler.lower()
                predicted = compiler.program_seconds(program)
                build(planned, program, predicted)
            publish_copy(staged, destination, overwrite=self.overwrite)
        artifact = artifacts.load(destination)
        result = CompileResult(
            artifact, None if predicted is None else predicted * 1e3, artifact.measurements().get("median_ms"),
            artifact.manifest.weight_bytes, program.arena_bytes, planned.solver, planned.bits, self.warnings,
            seconds=self.seconds,
        )  # fmt: skip
        if evaluation is not None:
            from qcompile.evaluation import evaluate_batches

            with self._stage("evaluate"):
                result.evaluation = evaluate_batches(artifact.run, evaluation, source.graph)
        return result

    def _inputs(self) -> tuple[Source, Batches, Batches, Dataset | None]:
        """The captured source, calibration data in two parts, and evaluation data."""
        from qcompile.capture import capture
        from qcompile.capture.check import check_capture

        with self._stage("capture"):
            source = Source.of(self.model, capture(self.model, example=self.example, shapes=self.shapes))
            check_capture(source.graph, self.model)
        with self._stage("data"):
            evaluation = None if self.eval_data is None else load_batches(self.eval_data, source.graph.inputs)
            if self.calib is not None:
                fit, held = split_holdout(load_batches(self.calib, source.graph.inputs, limit=self.samples))
                return source, fit, held, evaluation
            from qcompile.synthetic import synthetic_data

            batches, how = synthetic_data(source.graph, self.seed, self.samples or SYNTHETIC_SAMPLES)
        self.warnings.append(f"ACCURACY IS UNVERIFIED: no calibration data was given; ranges come from {how}")
        return source, stream(batches), stream(batches), evaluation

    def _check_arena(self, program: Program, target: Target) -> None:
        limit = self.budgets.arena
        if limit is not None and program.arena_bytes > limit:
            raise InfeasibleError(
                f"arena {format_bytes(limit)}: the best possible on {target.name} is {program.arena_bytes} bytes",
                hint="activations are stored in whole bytes there, so fewer bits do not help",
            )

    def _measure(self, staged: Path) -> float:
        with self._stage("measure"):
            executable = artifacts.load(staged).executable
            rounds = [executable.measure(self.threads, 0) for _ in range(MEASURE_ROUNDS)]
            # Interference only ever adds time, so the quietest round is the closest to the truth.
            measured = min(rounds, key=lambda m: m.median)
        artifacts.write_measurements(
            staged,
            {
                "median_ms": measured.median * 1e3, "p90_ms": measured.p90 * 1e3, "runs": measured.runs,
                "threads": measured.threads, "device": device_fingerprint(),
            },
        )  # fmt: skip
        return measured.median

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        self.progress(name, 0, 0)
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def can_run(target: Target) -> bool:
    """Whether this machine has the instruction sets of a target."""
    return host_features().issuperset(target.features)
