"""The main job: from a captured network to a plan, and from a plan to an artifact."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qcompile import pipelines, planning
from qcompile.errors import UsageError
from qcompile.ir import Array, Graph
from qcompile.pm.base import Batches, PassContext, Report
from qcompile.pm.facts import BITS, COSTS, LOSS, Bits
from qcompile.pm.manager import PassManager
from qcompile.pm.registry import find_pass
from qcompile.pm.spec import parse_pipeline
from qcompile.pm.work import WorkCache
from qcompile.target.backend import Backend
from qcompile.target.bench import measure_missing
from qcompile.target.cost import CostCache
from qcompile.target.model import Target
from qcompile.target.program import Program, work_of
from qcompile.target.table import MeasuredCosts
from qcompile.units import format_bits

log = logging.getLogger("qcompile")

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Budgets:
    """Limits of a plan; None means no limit.

    Attributes:
        latency: seconds end to end, batch 1.
        memory: bytes of packed weights.
        arena: bytes of the activation arena.
        max_drop: largest loss of accuracy on held-out data, a fraction of all samples; plans are then made as small
            as it allows.
        minimize: what is made small under `max_drop`, in this order: "memory", "latency"; empty decides by the limits.
    """

    latency: float | None = None
    memory: int | None = None
    arena: int | None = None
    max_drop: float | None = None
    minimize: tuple[str, ...] = ()

    @property
    def any(self) -> bool:
        return self.latency is not None or self.memory is not None or self.arena is not None


@dataclass
class Planned:
    """A plan and what led to it."""

    bits: dict[str, Bits]
    solver: dict[str, Any] = field(default_factory=dict)
    candidates: list[dict[str, Any]] = field(default_factory=list)
    accuracy: dict[str, Any] = field(default_factory=dict)


@dataclass
class Compiler:
    """One network on one target; analyses run once, plans as often as needed.

    Args:
        source: float graph as captured.
        target, backend: the machine.
        calibration, holdout: data to fit with and to choose with.
        costs: the cost cache, or None where nothing is measured.
        pins: regular expression over layer names → bits.
        instruments: of the pass manager.
        rounding: how weights become integers, as the option `method` of round-weights.
        equalize: whether equalize-layers runs.
        tune: whether tune-scales runs.
        sensitivity: how losses are predicted, a key of `pipelines.SENSITIVITIES`.
        metrics: regular expression over layer names → another sensitivity for them.
        protect: regular expressions over layer names; these layers keep the widest bits.
        work: finished pieces of long analyses.
        table: costs measured elsewhere, for where `costs` is None.
        floor: samples that only judge accuracy (`Budgets.max_drop`), with `labels` where `floor_labels` says so.
        refused: plans that were built and lost too much.
    """

    source: Graph
    target: Target
    backend: Backend
    calibration: Batches
    holdout: Batches
    costs: CostCache | None
    labels: bool = False
    threads: int = 1
    seed: int = 0
    pins: Mapping[str, Bits] = field(default_factory=dict)
    progress: Progress = lambda task, done, total: None
    instruments: Sequence[Any] = ()
    passes: str | None = None
    rounding: str = "gptq"
    equalize: bool = True
    tune: bool = True
    weight_bits: tuple[int, ...] | None = None
    act_bits: tuple[int, ...] | None = None
    sensitivity: str = pipelines.DEFAULT_SENSITIVITY
    metrics: Mapping[str, str] = field(default_factory=dict)
    protect: tuple[str, ...] = ()
    floor: Batches | None = None
    floor_labels: bool = False
    work: WorkCache | None = field(default_factory=WorkCache)
    table: MeasuredCosts | None = None
    graph: Graph = field(init=False)
    whole_target: Target = field(init=False)
    reports: dict[str, Report] = field(default_factory=dict)
    refused: list[dict[str, Bits]] = field(default_factory=list)
    _measured: dict[Any, Any] = field(default_factory=dict)
    _judge: Any = None

    def __post_init__(self) -> None:
        self.graph = self.source
        self.whole_target = self.target
        self.target = replace(
            self.target,
            weight_bits=_offered(self.target.weight_bits, self.weight_bits, "weight"),
            act_bits=_offered(self.target.act_bits, self.act_bits, "activation"),
        )

    @property
    def pairs(self) -> bool:
        """Whether plans are solved with the terms between layers that the sensitivity finds."""
        return self.sensitivity not in pipelines.ADDITIVE

    def context(self, **changes: Any) -> PassContext:
        base = PassContext(
            target=self.target, backend=self.backend, calibration=self.calibration, holdout=self.holdout,
            labels=self.labels, costs=self.costs, work=self.work, seed=self.seed, progress=self.progress, log=log,
        )  # fmt: skip
        data = {
            "pins": dict(self.pins), "protect": self.protect, "pairs": self.pairs, "costs": self.table,
            **changes.pop("data", {}),
        }  # fmt: skip
        return replace(base, data=data, **changes)

    def run_passes(self, graph: Graph, specs: Sequence[Any], **context: Any) -> tuple[Graph, Program | None]:
        """Run passes given by name, or (name, options); their reports are kept by name."""
        built = [
            find_pass(s)() if isinstance(s, str) else find_pass(s[0])(**s[1]) if isinstance(s, tuple) else s
            for s in specs
        ]
        result = PassManager(built, instruments=self.instruments).run(graph, self.context(**context))
        self.reports.update(result.reports)
        return result.graph, result.program

    def prepare(self, *, analyse: bool) -> None:
        """Canonicalize and calibrate; with `analyse` also everything the integer program needs."""
        canonical: Sequence[Any] = parse_pipeline(self.passes) if self.passes else pipelines.CANONICALIZE
        self.graph, _ = self.run_passes(self.graph, canonical)
        self.check_pins()
        names = [name for name in pipelines.CALIBRATE if self.equalize or name != "equalize-layers"]
        self.graph, _ = self.run_passes(self.graph, names)
        if analyse:
            self._analyse()

    def _analyse(self) -> None:
        """Predicted losses and costs; groups of layers by a sensitivity of their own."""
        others = {}
        for name in dict.fromkeys(self.metrics.values()):
            only_losses = [self._with_options(spec) for spec in pipelines.losses(name)]
            others[name], _ = self.run_passes(self.graph, only_losses)
        specs = [self._with_options(spec) for spec in pipelines.analysis(self.sensitivity)]
        self.graph, _ = self.run_passes(self.graph, specs)
        if self.metrics:
            groups = [(pattern, name, others[name].notes[LOSS]) for pattern, name in self.metrics.items()]
            self.graph, _ = self.run_passes(self.graph, ["mix-metrics"], data={"metrics": groups})

    def _with_options(self, name: str) -> Any:
        if name == "round-candidates":
            return name, {"method": "nearest" if self.rounding == "nearest" else "gptq"}
        if name == "estimate-cost":
            return name, {"threads": self.threads, "measure": self.costs is not None}
        return (name, {"threads": self.threads}) if name == "choose-kernels" else name

    def check_pins(self) -> None:
        from passes.structure import Structure

        layers = Structure(self.graph).layers
        asked = [("--pin", pattern) for pattern in self.pins]
        asked += [("--protect", pattern) for pattern in self.protect]
        asked += [("--metric", pattern) for pattern in self.metrics]
        for flag, pattern in asked:
            try:
                found = any(re.fullmatch(pattern, layer) for layer in layers)
            except re.error as error:
                raise UsageError(f"{flag} {pattern!r} is not a regular expression: {error}") from None
            if not found:
                raise UsageError(
                    f"{flag} {pattern!r} matches no layer", hint=f"the layers are {', '.join(layers[:8])}, …"
                )

    def uniform(self, bits: Bits) -> Planned:
        """Every layer at the same bits, pins excepted."""
        self.graph, _ = self.run_passes(self.graph, [("uniform-bits", {"w": bits[0], "a": bits[1]})])
        return Planned(self._bits(), {"status": "uniform", "objective": None, "bound": None, "gap": None})

    def from_file(self, path: Path) -> Planned:
        """The bits of a plan file."""
        self.graph, _ = self.run_passes(self.graph, [("plan-from-file", {"path": str(path)})])
        return Planned(self._bits(), {"status": "given", "objective": None, "bound": None, "gap": None})

    def replan(self, bits: Mapping[str, Bits]) -> None:
        """Plan with bits that were solved for before."""
        table = self.graph.notes.with_table(BITS, planning.choices(bits))
        self.graph = self.graph.with_notes(table)

    def solve(self, budgets: Budgets, latency_scale: float) -> Planned:
        """Solve the integer program, then choose among its best plans and the uniform ones by measured loss."""
        fixed = self.graph.notes[COSTS][""].seconds[8, 8]
        data = {"fixed_seconds": fixed, "latency_scale": latency_scale}
        if budgets.max_drop is not None:
            return planning.keep_accuracy(self, budgets, data)
        options = {"latency": budgets.latency, "memory": budgets.memory}
        self.graph, _ = self.run_passes(self.graph, [("solve-bits", options)], data=data)
        facts = self.reports["solve-bits"].facts
        # A plan that another one covers in every layer will not be the best; uniform plans yield only to uniform ones.
        plans = undominated(facts["candidates"])
        plans += [plan for plan in undominated(facts["uniform"]) if plan not in plans]
        predicted = dict(zip(map(_key, facts["candidates"]), facts["predicted"], strict=True))
        inputs = {
            "candidates": [planning.choices(plan) for plan in plans], "measured": self._measured,
            "uniform": [planning.choices(plan) for plan in facts["uniform"]],
            "predicted": [predicted[_key(plan)]["loss"] for plan in plans],
        }  # fmt: skip
        self.graph, _ = self.run_passes(self.graph, ["select-plan"], data=inputs)
        selected = self.reports["select-plan"].facts
        uniform = [i for i, plan in enumerate(plans) if plan in facts["uniform"]]
        chosen, rounded = planning.confirmed(self, inputs, uniform, selected)
        table = [
            {
                "plan": _label(plan, facts["candidates"]), "chosen": i == chosen, "predicted": predicted[_key(plan)],
                **measured, **({"rounded": rounded[i]} if i in rounded else {}),
            }
            for i, (plan, measured) in enumerate(zip(plans, selected["measured"], strict=True))
        ]  # fmt: skip
        return Planned(self._bits(), dict(facts["solver"]), table)

    def judge(self) -> Any:
        """What counts the answers a plan costs, on the samples of the floor."""
        if self._judge is None:
            from passes.plan.judge import Judge

            if self.floor is None:
                raise UsageError("there are no held-out samples to measure accuracy on")
            self._judge = Judge(self.graph, self.floor, self.floor_labels)
        return self._judge

    def _bits(self) -> dict[str, Bits]:
        return {layer: (choice.w, choice.a) for layer, choice in self.graph.notes[BITS].items()}

    def lower(self, rounding: str | None = None) -> Program:
        """The program of the graph with its planned bits, its weights rounded as given or as asked for."""
        method = self.rounding if rounding is None else rounding
        rounds = [name for name in pipelines.ROUND if name != "tune-scales" or (self.tune and method == "gptq")]
        specs = [("round-weights", {"method": method}) if name == "round-weights" else name for name in rounds]
        # The plan is chosen: nothing is compared on held-out samples any more, so rounding may use them too.
        graph, _ = self.run_passes(self.graph, specs, calibration=self._all_samples)
        _, program = self.run_passes(graph, [self._with_options(n) for n in (*pipelines.QUANTIZE, *pipelines.LOWER)])
        if program is None:
            raise UsageError("the pipeline made no program", hint="end it with plan-memory and choose-kernels")
        return program

    def _all_samples(self) -> Iterator[dict[str, Array]]:
        """The calibration samples and, where they are others, those held out."""
        yield from self.calibration()
        if self.holdout is not self.calibration:
            yield from self.holdout()

    def program_seconds(self, program: Program) -> float | None:
        """Sum of the measured costs of a program's kernels; what was never measured is measured now."""
        if self.costs is None:
            return None
        works = {work.key: (work, kernel) for kernel in program.kernels if (work := work_of(kernel, program))}
        known = measure_missing(
            {key: (work, kernel, program) for key, (work, kernel) in works.items()},
            self.backend, self.costs, self.threads, self.progress,
        )  # fmt: skip
        return sum(known[work_of(kernel, program).key].median for kernel in program.kernels)

    def predicted_seconds(self, bits: Mapping[str, Bits]) -> float | None:
        """Sum of the kernels' costs under a plan, uncorrected; None where no costs were estimated."""
        table = self.graph.notes.get(COSTS)
        if not table:
            return None
        return table[""].seconds[8, 8] + sum(table[layer].seconds[pair] for layer, pair in bits.items())


def _key(plan: Mapping[str, Bits]) -> tuple[tuple[str, Bits], ...]:
    return tuple(plan.items())


def _label(plan: Mapping[str, Bits], candidates: Sequence[Mapping[str, Bits]]) -> str:
    """What a plan is: uniform ones show their bits; the solver's own is the first candidate, those behind it follow."""
    if len(set(plan.values())) == 1:
        return f"uniform {format_bits(next(iter(plan.values())))}"
    place = candidates.index(plan)
    return f"runner-up {place}" if place else "solver"


def _offered(supported: tuple[int, ...], asked: tuple[int, ...] | None, what: str) -> tuple[int, ...]:
    if asked is None:
        return supported
    if extra := [b for b in asked if b not in supported]:
        raise UsageError(
            f"{what} bits {extra[0]} are not offered by this target",
            hint=f"it offers {', '.join(map(str, supported))}",
        )
    return tuple(sorted(asked))


def stream(batches: Sequence[dict[str, Array]]) -> Batches:
    """Batches that lie in memory, as something that can be streamed again and again."""

    def again() -> Iterator[dict[str, Array]]:
        return iter(batches)

    return again


def undominated(plans: Sequence[Mapping[str, Bits]]) -> list[Mapping[str, Bits]]:
    """The plans that no other plan exceeds or equals in every layer's bits; only these can be the best."""

    def covers(one: Mapping[str, Bits], other: Mapping[str, Bits]) -> bool:
        return all(one[k][0] >= other[k][0] and one[k][1] >= other[k][1] for k in other)

    return [plan for plan in plans if not any(covers(p, plan) for p in plans if p is not plan and p != plan)]
