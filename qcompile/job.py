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

import numpy as np

from qcompile import artifact as artifacts
from qcompile import pipelines, planning
from qcompile.artifact import Artifact
from qcompile.artifact.copying import publish_copy
from qcompile.compiler import Budgets, Compiler, Planned, Progress, stream
from qcompile.data import Dataset, load_batches, split_holdout
from qcompile.emission import Source, fingerprint, memory_plan, record_of, save
from qcompile.errors import InfeasibleError, UsageError
from qcompile.ir import Array
from qcompile.latency import Build, keep_latency, missed_by_stopwatch, slower_than_uniform
from qcompile.planning import AXES
from qcompile.pm.base import Batches
from qcompile.pm.facts import Bits
from qcompile.pm.instruments import Dump, Logging
from qcompile.pm.registry import backend_on, can_run, find_target, shipped_costs
from qcompile.target.backend import Apart, Backend
from qcompile.target.bench import conditions
from qcompile.target.cost import CostCache
from qcompile.target.device import Device
from qcompile.target.model import Target
from qcompile.target.program import Program
from qcompile.target.table import MeasuredCosts, read_costs
from qcompile.timer import Timer
from qcompile.timing import time_executable
from qcompile.units import format_bytes, parse_bits

log = logging.getLogger("qcompile")

SYNTHETIC_SAMPLES = 32

ACCURACY_ROUNDS = 3
"""Plans that are built and may miss an accuracy floor they kept in simulation."""


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
        arena_bound: bytes alive at one kernel at most; no memory plan of these buffers needs less.
        solver: status, objective, bound and gap of the integer program.
        bits: layer → (weight bits, activation bits).
        warnings: what the user should know.
        evaluation: of the evaluation data, where it was given.
        accuracy: what an accuracy floor was held against: metric, samples, drop, its bound, and of each step how many
            plans were measured; empty where none was asked for.
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
    accuracy: dict[str, Any] = field(default_factory=dict)
    arena_bound: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "artifact": str(self.artifact.path),
            "predicted_ms": self.predicted_ms,
            "measured_ms": self.measured_ms,
            "weight_bytes": self.weight_bytes,
            "arena_bytes": self.arena_bytes,
            "arena_bound": self.arena_bound,
            "solver": {key: self.solver.get(key) for key in ("status", "objective", "bound", "gap")},
            "bits": {layer: list(pair) for layer, pair in self.bits.items()},
            "warnings": self.warnings,
            "evaluation": self.evaluation,
            "accuracy": self.accuracy or None,
            "seconds": {stage: round(value, 2) for stage, value in self.seconds.items()},
        }


@dataclass(frozen=True)
class _Data:
    """Samples by what they are for: fitting, choosing plans, judging accuracy, and the user's own evaluation."""

    fit: Batches
    held: Batches
    floor: Batches | None
    evaluation: Dataset | None


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
    holdout: Any = None
    sensitivity: str | None = None
    metrics: Mapping[str, str] = field(default_factory=dict)
    protect: tuple[str, ...] = ()
    rounding: str | None = None
    equalize: bool = True
    tune: bool = True
    device: Device | None = None
    costs: Path | None = None
    warnings: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self) -> CompileResult:
        """Raises QcompileError; then nothing is left half-written."""
        self.refuse_contradictions()
        uniform = None if self.uniform is None else parse_bits(self.uniform)
        destination = self.out or Path(tempfile.mkdtemp(prefix="qcompile-")) / "model.qc"
        artifacts.refuse_existing(destination, self.overwrite)
        source, compiler, evaluation = self.open()
        target, local = compiler.target, compiler.costs is not None
        given = uniform is not None or self.plan is not None
        with self.stage("calibrate" if given else "analyse"):
            compiler.prepare(analyse=not given)
        samples, digest = fingerprint(compiler.calibration)
        calibration = artifacts.Calibration(getattr(compiler.calibration, "name", "synthetic"), samples, digest)
        timer = Timer(compiler, self.stage)
        with tempfile.TemporaryDirectory(prefix="qcompile-") as scratch:
            staged, loaded = Path(scratch) / "model.qc", list[artifacts.Artifact]()

            def build(planned: Planned, program: Program, predicted: float | None) -> float | None:
                self._check_arena(program, target)
                record = record_of(
                    compiler, source, planned, program, self.budgets, uniform=self.uniform, predicted=predicted,
                    calibration=calibration, warnings=tuple(self.warnings),
                )  # fmt: skip
                with self.stage("build"):
                    save(staged, compiler, source, planned, program, record)
                if not local:
                    return None
                loaded[:] = [artifacts.load(staged).on(self.device)]
                return self._measure(loaded[0], timer, program)

            if not given:
                planned, program, predicted = self._keep_budgets(timer, build, staged, destination)
            else:
                planned = compiler.uniform(uniform) if uniform else compiler.from_file(self.plan or Path())
                with self.stage("round"):
                    program = compiler.lower()
                program = timer.settled(program)
                predicted = compiler.program_seconds(program)
                build(planned, program, predicted)
                predicted = None if predicted is None else predicted * timer.correction()
            if loaded:
                self._compare(loaded.pop(), timer, program, predicted)
            publish_copy(staged, destination, overwrite=self.overwrite)
        artifact = artifacts.load(destination)
        result = CompileResult(
            artifact, None if predicted is None else predicted * 1e3, artifact.measurements().get("median_ms"),
            artifact.manifest.weight_bytes, program.arena_bytes, planned.solver, planned.bits, self.warnings,
            seconds=self.seconds, accuracy=planned.accuracy,
            arena_bound=memory_plan(program)["lower_bound_bytes"],
        )  # fmt: skip
        if evaluation is not None:
            from qcompile.evaluation import evaluate_batches

            with self.stage("evaluate"):
                result.evaluation = evaluate_batches(artifact.run, evaluation, source.graph)
        return result

    def refuse_contradictions(self) -> None:
        """Raises UsageError where arguments exclude each other."""
        budgets = self.budgets
        limited = budgets.latency is not None or budgets.memory is not None or budgets.max_drop is not None
        if (self.uniform is not None) + (self.plan is not None) + limited > 1:
            raise UsageError("give --uniform, or --plan, or budgets, not several", hint="a given plan has no freedom")
        given = self.uniform is not None or self.plan is not None
        if given and (self.sensitivity is not None or self.metrics):
            raise UsageError("--sensitivity and --metric have no say in a given plan", hint="leave them out")
        if budgets.max_drop is not None and self.calib is None and self.holdout is None:
            raise UsageError(
                "--max-drop needs samples to measure accuracy on", hint="give --calib, and --holdout with labels"
            )
        if budgets.minimize and budgets.max_drop is None:
            raise UsageError("--minimize says what --max-drop makes small", hint="give --max-drop, such as 0.5%")
        for name in (self.sensitivity, *self.metrics.values()):
            if name is not None:
                pipelines.losses(name)
        for axis in budgets.minimize:
            if axis not in AXES:
                raise UsageError(f"--minimize cannot make {axis!r} small", hint=f"it takes {', '.join(AXES)}")

    def open(self, *, floor: bool = False) -> tuple[Source, Compiler, Dataset | None]:
        """The captured source, a compiler with its data, and the evaluation data.

        Args:
            floor: whether samples are set apart to judge accuracy even without a floor.
        """
        target = find_target(self.target)
        backend = backend_on(target, self.device)
        source, data = self._inputs(floor or self.budgets.max_drop is not None)
        local = self.measure and (self.device is not None or can_run(target))
        table = None if local else self._table(target, backend)
        compiler = Compiler(
            source.graph, target, backend, data.fit, data.held, self._costs(backend) if local else None,
            labels=getattr(data.fit, "has_labels", False), threads=self.threads, seed=self.seed,
            progress=self.progress,
            rounding=self.rounding or "gptq",
            equalize=self.equalize,
            # Made-up samples say how wide values are, not what the network should answer.
            tune=self.tune and self.calib is not None,
            passes=self.passes, pins=self.pins, weight_bits=self.weight_bits, act_bits=self.act_bits,
            sensitivity=self.sensitivity or pipelines.DEFAULT_SENSITIVITY, metrics=self.metrics, protect=self.protect,
            floor=data.floor, floor_labels=getattr(data.floor, "has_labels", False),
            instruments=[Logging()] if self.dump is None else [Logging(), Dump(self.dump)], table=table,
        )  # fmt: skip
        return source, compiler, data.evaluation

    def _table(self, target: Target, backend: Backend) -> MeasuredCosts | None:
        """Costs measured elsewhere, given or shipped with the target; says what the plan is made of."""
        path = self.costs or shipped_costs(target)
        if path is None:
            self.warnings.append(f"nothing was measured: costs on {target.name} are a roofline estimate")
            return None
        table = read_costs(path, target.name)
        changed = "" if table.compiler == backend.fingerprint() else ", of another version of the kernels"
        self.warnings.append(f"nothing was measured here: costs are those of {table.device}{changed} ({path.name})")
        return table

    def _keep_budgets(
        self, timer: Timer, build: Build, staged: Path, destination: Path
    ) -> tuple[Planned, Program, float | None]:
        """A plan that keeps all budgets, built: the latency as measured, the accuracy as the artifact computes it."""
        compiler = timer.compiler
        for _ in range(ACCURACY_ROUNDS):
            planned, program, predicted = keep_latency(timer, self.budgets, build)
            if compiler.floor is None or self.budgets.max_drop is None:
                break
            if self.device is None and not can_run(compiler.target):
                self.warnings.append("accuracy was measured in simulation only: the artifact cannot run here")
                break
            with self.stage("judge"):
                built = artifacts.load(staged).on(self.device)
                kept = planning.check_built(compiler, planned, _outputs(built, compiler.floor))
            if kept:
                break
        else:
            rejected = destination.with_name(destination.name + ".rejected")
            publish_copy(staged, rejected, overwrite=True)
            raise planning.refuse(planned, rejected)
        return planned, program, predicted

    def _inputs(self, judged: bool) -> tuple[Source, _Data]:
        """The captured source, and the data in the parts it is used for."""
        from qcompile.capture import capture
        from qcompile.capture.check import check_capture

        with self.stage("capture"):
            source = Source.of(self.model, capture(self.model, example=self.example, shapes=self.shapes))
            check_capture(source.graph, self.model)
        with self.stage("data"):
            ports = source.graph.inputs
            evaluation = None if self.eval_data is None else load_batches(self.eval_data, ports)
            given = None if self.holdout is None else load_batches(self.holdout, ports)
            if self.calib is not None:
                fit, held = split_holdout(load_batches(self.calib, ports, limit=self.samples))
                floor = given
                if judged and given is None:
                    held, floor = split_floor(fit, held)
                return source, _Data(fit, held, floor, evaluation)
            from qcompile.synthetic import synthetic_data

            batches, how = synthetic_data(source.graph, self.seed, self.samples or SYNTHETIC_SAMPLES)
        self.warnings.append(f"ACCURACY IS UNVERIFIED: no calibration data was given; ranges come from {how}")
        return source, _Data(stream(batches), stream(batches), given or stream(batches), evaluation)

    def _costs(self, backend: Backend) -> CostCache:
        """The cache, for the device that is measured."""
        if self.device is not None:
            return CostCache(device=self.device.fingerprint)
        return CostCache(device=backend.device_name() if isinstance(backend, Apart) else None)

    def _check_arena(self, program: Program, target: Target) -> None:
        limit = self.budgets.arena
        if limit is not None and program.arena_bytes > limit:
            raise InfeasibleError(
                f"arena {format_bytes(limit)}: the best possible on {target.name} is {program.arena_bytes} bytes",
                hint="activations are stored in whole bytes there, so fewer bits do not help",
            )

    def _measure(self, artifact: artifacts.Artifact, timer: Timer, program: Program) -> float:
        with self.stage("measure"):
            executable = artifact.executable
        limit = None if self.budgets.latency is None else self.budgets.latency / timer.pace
        measured = timer.time(program, executable, limit)
        artifacts.write_measurements(
            artifact.path,
            {
                "median_ms": measured.median * 1e3, "p90_ms": measured.p90 * 1e3, "runs": measured.runs,
                "threads": measured.threads, "device": self._costs(timer.compiler.backend).device,
                "clock_us": measured.clock * 1e6,
                **conditions(),
            },
        )  # fmt: skip
        return measured.median

    def _compare(self, artifact: artifacts.Artifact, timer: Timer, program: Program, predicted: float | None) -> None:
        """Put the prediction and uniform 8 bits beside what was measured, and say where the plan is no faster."""
        reference, pace = timer.reference(), timer.pace
        found = artifact.measurements()
        with self.stage("measure"):
            # As a stopwatch has it: no clock is taken into account.
            now = time_executable(artifact.executable, self.threads, self.budgets.latency).median
        artifacts.write_measurements(
            artifact.path,
            {
                **found, "median_ms": found["median_ms"] * pace, "p90_ms": found["p90_ms"] * pace, "pace": pace,
                "predicted_ms": None if predicted is None else predicted * 1e3,
                "uniform_ms": None if reference is None else reference * pace * 1e3, "now_ms": now * 1e3,
            },
        )  # fmt: skip
        if said := missed_by_stopwatch(now, found["median_ms"] * pace * 1e-3, self.budgets.latency):
            self.warnings.append(said)
        if said := slower_than_uniform(timer.seconds(program), reference):
            self.warnings.append(said)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        self.progress(name, 0, 0)
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def split_floor(fit: Dataset, held: Dataset) -> tuple[Dataset, Dataset]:
    """(samples to choose plans with, samples that only judge accuracy): halves of what is held out."""
    if held is fit or len(held) < 2:
        log.warning("too few samples to set any apart: accuracy is measured on data the plan was fitted to")
        return held, held
    cut = len(held) // 2
    return held.part(0, cut), held.part(cut, len(held))


def _outputs(artifact: Artifact, samples: Batches) -> dict[str, Array]:
    """Outputs of an artifact on a stream of samples, by name."""
    names = [port.name for port in artifact.graph.inputs]
    parts = [artifact.run({name: batch[name] for name in names}) for batch in samples()]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
