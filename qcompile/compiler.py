"""The main job: from a captured network to a plan, and from a plan to an artifact."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qcompile import pipelines
from qcompile.errors import InfeasibleError, UsageError
from qcompile.ir import Array, Graph
from qcompile.pm.base import Batches, PassContext, Report
from qcompile.pm.facts import BITS, COSTS, BitChoice, Bits
from qcompile.pm.manager import PassManager
from qcompile.pm.registry import find_pass
from qcompile.pm.spec import parse_pipeline
from qcompile.target.backend import Backend
from qcompile.target.cost import CostCache
from qcompile.target.model import Target
from qcompile.target.program import Program, work_of
from qcompile.units import format_bits

log = logging.getLogger("qcompile")

Progress = Callable[[str, int, int], None]

LATENCY_ROUNDS = 5
"""How often the budget is tightened and solved again when the measured latency misses it."""


@dataclass(frozen=True)
class Budgets:
    """Limits of a plan; None means no limit.

    Attributes:
        latency: seconds end to end, batch 1.
        memory: bytes of packed weights.
        arena: bytes of the activation arena.
    """

    latency: float | None = None
    memory: int | None = None
    arena: int | None = None

    @property
    def any(self) -> bool:
        return self.latency is not None or self.memory is not None or self.arena is not None


@dataclass
class Planned:
    """A plan and what led to it."""

    bits: dict[str, Bits]
    solver: dict[str, Any] = field(default_factory=dict)
    candidates: list[dict[str, Any]] = field(default_factory=list)


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
    weight_bits: tuple[int, ...] | None = None
    act_bits: tuple[int, ...] | None = None
    graph: Graph = field(init=False)
    reports: dict[str, Report] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.graph = self.source
        self.target = replace(
            self.target,
            weight_bits=_offered(self.target.weight_bits, self.weight_bits, "weight"),
            act_bits=_offered(self.target.act_bits, self.act_bits, "activation"),
        )

    def context(self, **changes: Any) -> PassContext:
        base = PassContext(
            target=self.target, backend=self.backend, calibration=self.calibration, holdout=self.holdout,
            labels=self.labels, costs=self.costs, seed=self.seed, progress=self.progress, log=log,
        )  # fmt: skip
        data = {"pins": dict(self.pins), **changes.pop("data", {})}
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
        self.graph, _ = self.run_passes(self.graph, pipelines.CALIBRATE)
        if analyse:
            specs = [self._with_options(name) for name in pipelines.ANALYSIS]
            self.graph, _ = self.run_passes(self.graph, specs)

    def _with_options(self, name: str) -> Any:
        if name == "round-weights":
            return name, {"method": self.rounding}
        if name == "estimate-cost":
            return name, {"threads": self.threads, "measure": self.costs is not None}
        return (name, {"threads": self.threads}) if name == "choose-kernels" else name

    def check_pins(self) -> None:
        from passes.structure import Structure

        layers = Structure(self.graph).layers
        for pattern in self.pins:
            if not any(re.fullmatch(pattern, layer) for layer in layers):
                raise UsageError(
                    f"--pin {pattern!r} matches no layer", hint=f"the layers are {', '.join(layers[:8])}, …"
                )

    def uniform(self, bits: Bits) -> Planned:
        """Every layer at the same bits, pins excepted."""
        self.graph, _ = self.run_passes(self.graph, [("uniform-bits", {"w": bits[0], "a": bits[1]})])
        return Planned(self._bits(), {"status": "uniform", "objective": None, "bound": None, "gap": None})

    def from_file(self, path: Path) -> Planned:
        """The bits of a plan file."""
        self.graph, _ = self.run_passes(self.graph, [("plan-from-file", {"path": str(path)})])
        return Planned(self._bits(), {"status": "given", "objective": None, "bound": None, "gap": None})

    def solve(self, budgets: Budgets, latency_scale: float) -> Planned:
        """Solve the integer program, then choose among its best plans and the uniform ones by measured loss."""
        fixed = self.graph.notes[COSTS][""].seconds[8, 8]
        data = {"fixed_seconds": fixed, "latency_scale": latency_scale}
        options = {"latency": budgets.latency, "memory": budgets.memory}
        self.graph, _ = self.run_passes(self.graph, [("solve-bits", options)], data=data)
        facts = self.reports["solve-bits"].facts
        plans = undominated(facts["candidates"])
        candidates = [{name: BitChoice(*pair) for name, pair in plan.items()} for plan in plans]
        self.graph, _ = self.run_passes(self.graph, ["select-plan"], data={"candidates": candidates})
        selected = self.reports["select-plan"].facts
        table = [
            {"plan": _label(i, plan), "chosen": i == selected["chosen"], **measured}
            for i, (plan, measured) in enumerate(zip(plans, selected["measured"], strict=True))
        ]
        return Planned(self._bits(), dict(facts["solver"]), table)

    def _bits(self) -> dict[str, Bits]:
        return {layer: (choice.w, choice.a) for layer, choice in self.graph.notes[BITS].items()}

    def lower(self) -> Program:
        """The program of the graph with its planned bits."""
        rounds = [self._with_options(name) for name in pipelines.ROUND]
        # The plan is chosen: nothing is compared on held-out samples any more, so rounding may use them too.
        graph, _ = self.run_passes(self.graph, rounds, calibration=self._all_samples)
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
        compiler = self.backend.fingerprint()
        known = self.costs.get_many([work for work, _ in works.values()], self.threads, compiler)
        missing = [key for key in works if key not in known]
        measured = self.backend.measure([(works[key][1], program) for key in missing], self.threads)
        for key, measurement in zip(missing, measured, strict=True):
            self.costs.put(works[key][0], compiler, measurement)
            known[key] = measurement
        return sum(known[work_of(kernel, program).key].median for kernel in program.kernels)

    def predicted_seconds(self, bits: Mapping[str, Bits]) -> float | None:
        """Sum of the kernels' costs under a plan, uncorrected; None where no costs were estimated."""
        table = self.graph.notes.get(COSTS)
        if not table:
            return None
        return table[""].seconds[8, 8] + sum(table[layer].seconds[pair] for layer, pair in bits.items())


def _label(index: int, plan: Mapping[str, Bits]) -> str:
    """What a candidate is: the solver's plan comes first, then the runners-up; uniform plans show their bits."""
    if len(set(plan.values())) == 1:
        return f"uniform {format_bits(next(iter(plan.values())))}"
    return f"runner-up {index}" if index else "solver"


def _offered(supported: tuple[int, ...], asked: tuple[int, ...] | None, what: str) -> tuple[int, ...]:
    if asked is None:
        return supported
    if extra := [b for b in asked if b not in supported]:
        raise UsageError(
            f"{what} bits {extra[0]} are not offered by this target",
            hint=f"it offers {', '.join(map(str, supported))}",
        )
    return tuple(sorted(asked))


def keep_latency(
    compiler: Compiler, budgets: Budgets, build: Callable[[Planned, Program, float | None], float | None]
) -> tuple[Planned, Program, float | None]:
    """Solve, build and measure; while the measured latency misses the budget, correct the prediction and repeat.

    `build(plan, program, predicted seconds)` returns the measured seconds, or None where nothing can be measured.
    Returns the plan, its program, and the predicted seconds after correction.
    """
    scale, best = 1.0, float("inf")
    for _ in range(LATENCY_ROUNDS):
        try:
            plan = compiler.solve(budgets, scale)
        except InfeasibleError as error:
            if best == float("inf"):
                raise
            raise InfeasibleError(
                f"{error.message}; the best plan that was built and measured takes {best * 1e3:.3g} ms",
                hint=error.hint,
            ) from None
        program = compiler.lower()
        raw = compiler.predicted_seconds(plan.bits)
        predicted = None if raw is None else raw * scale
        # The record holds the cost table's sum: the correction comes from measurements, which differ between runs.
        measured = build(plan, program, raw)
        if budgets.latency is None or measured is None or measured <= budgets.latency or not raw:
            return plan, program, predicted
        best = min(best, measured)
        log.info("measured %.3g ms, over the budget: correcting the prediction", measured * 1e3)
        # A little more than the ratio, so that noise of a percent or two does not need another round.
        scale = max(scale * 1.02, 1.02 * measured / raw)
    raise InfeasibleError(
        f"latency {budgets.latency * 1e3 if budgets.latency else 0:.4g} ms: after {LATENCY_ROUNDS} plans the best "
        f"measured {best * 1e3:.3g} ms",
        hint="raise --latency, or run on a quieter machine",
    )


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
