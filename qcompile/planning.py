"""Plans beyond the solver's: confirmed with their real weights, an accuracy floor that is measured, the whole front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompile.errors import AccuracyError
from qcompile.pm.facts import BITS, ROUNDED, BitChoice, Bits, Rounded

if TYPE_CHECKING:
    from passes.plan.judge import Judge
    from qcompile.compiler import Budgets, Compiler, Planned

AXES = ("memory", "latency")

HOPELESS = 4.0
"""Times the selected plan's loss beyond which rounding will not make a uniform plan the better one: for MobileNetV2 at
half of the 8-bit bytes it turned a loss twice as large into one half as large."""

LEAST_HELD = 32
"""Held-out samples below which a second measurement says no more than the first."""


def axes_of(budgets: Budgets) -> tuple[str, ...]:
    """What an accuracy floor makes smaller, in this order: what was asked, what is limited, else bytes then latency."""
    if budgets.minimize:
        return budgets.minimize
    limited = tuple(axis for axis in AXES if getattr(budgets, axis) is not None)
    return limited or AXES


def confirmed(
    compiler: Compiler, inputs: Mapping[str, Any], uniform: Sequence[int], selected: Mapping[str, Any]
) -> tuple[int, dict[int, dict[str, float]]]:
    """Which candidate is taken once the selected one and the best uniform one were rounded as they will be.

    Args:
        inputs: of `select-plan`.
        uniform: which of its candidates are uniform.
        selected: its facts.

    Returns:
        The index, and what was measured of the rounded plans by index; nothing where it could not change the choice: a
        uniform plan was selected or lost more than `HOPELESS` times as much, or few samples are held out.
    """
    chosen: int = selected["chosen"]
    losses = [row["loss"] for row in selected["measured"]]
    best = min(uniform, key=lambda i: losses[i], default=chosen)
    if (
        compiler.rounding == "nearest"
        or chosen in uniform
        or best == chosen
        or losses[best] > HOPELESS * losses[chosen]
    ):
        return chosen, {}
    if sum(len(next(iter(batch.values()))) for batch in compiler.holdout()) < LEAST_HELD:
        return chosen, {}
    pair = (chosen, best)
    plans = [inputs["candidates"][i] for i in pair]
    data = {"finalists": [(plan, rounded_weights(compiler, plan)) for plan in plans]}
    compiler.graph, _ = compiler.run_passes(compiler.graph, ["confirm-plan"], data=data)
    facts = compiler.reports["confirm-plan"].facts
    return pair[facts["chosen"]], dict(zip(pair, facts["measured"], strict=True))


def rounded_weights(compiler: Compiler, plan: Mapping[str, BitChoice]) -> Mapping[str, Rounded]:
    """The weights of a plan, rounded by what is not held out."""
    graph = compiler.graph.with_notes(compiler.graph.notes.with_table(BITS, plan))
    graph, _ = compiler.run_passes(graph, [("round-weights", {"method": compiler.rounding})])
    return graph.notes[ROUNDED]


def keep_accuracy(compiler: Compiler, budgets: Budgets, data: Mapping[str, Any]) -> Planned:
    """The cheapest plan within the budgets whose measured accuracy keeps the floor.

    One step for each quantity to be made smaller: a front of plans is laid along it, and bisected with measurements on
    samples nothing else looks at.  Each later step keeps what the earlier ones reached.
    """
    from qcompile.compiler import Planned

    judge = compiler.judge()
    limits: dict[str, float | int | None] = {"latency": budgets.latency, "memory": budgets.memory}
    steps = []
    for axis in axes_of(budgets):
        options = {"axis": axis, **limits}
        compiler.graph, _ = compiler.run_passes(compiler.graph, [("plan-front", options)], data=data)
        front = compiler.reports["plan-front"].facts["front"]
        chain = [choices(row["plan"]) for row in front]
        inputs = {**data, "chain": chain, "judge": judge, "refused": [choices(plan) for plan in compiler.refused]}
        bisect = ("bisect-plan", {"max_drop": budgets.max_drop})
        compiler.graph, _ = compiler.run_passes(compiler.graph, [bisect], data=inputs, holdout=compiler.floor)
        facts = compiler.reports["bisect-plan"].facts
        predicted = front[facts["chosen"]]["predicted"]
        # The next step may not give back what this one gained.
        limits[axis] = int(predicted[axis]) if axis == "memory" else predicted[axis] * (1 + 1e-9)
        steps.append({
            "minimized": axis, "plans": facts["plans"], "evaluations": facts["evaluations"], "predicted": predicted,
            "accuracy": facts["accuracy"],
        })  # fmt: skip
    bits = {layer: (choice.w, choice.a) for layer, choice in compiler.graph.notes[BITS].items()}
    objective = steps[-1]["predicted"]["loss"]
    solver = {"status": "accuracy", "objective": objective, "bound": None, "gap": None}
    return Planned(bits, solver, accuracy={**steps[-1]["accuracy"], "steps": steps})


def check_built(compiler: Compiler, planned: Planned, outputs: Mapping[str, Any]) -> bool:
    """Whether the outputs of the artifact keep the floor too; where not, the plan is refused from now on.

    Args:
        outputs: of the artifact on the samples of the floor, by name.
    """
    drop = compiler.judge().compare(outputs)
    planned.accuracy = {**planned.accuracy, "built": drop.to_json()}
    kept: bool = drop.drop <= float(planned.accuracy["max_drop"]) + 1e-12
    if not kept:
        compiler.refused.append(planned.bits)
    return kept


def refuse(planned: Planned, kept: Path) -> AccuracyError:
    """The error where every plan that was built misses the floor; the last one is kept in a folder of its own."""
    built = planned.accuracy["built"]
    return AccuracyError(
        f"the built network loses {100 * built['drop']:.3g} % of {built['metric']} on {built['samples']} held-out "
        f"samples, more than the {100 * planned.accuracy['max_drop']:.3g} % allowed",
        hint=f"allow a larger --max-drop, or give more calibration samples; the artifact is kept as {kept}",
    )


def choices(plan: Mapping[str, Bits]) -> dict[str, BitChoice]:
    """A plan as passes note it."""
    return {layer: BitChoice(*bits) for layer, bits in plan.items()}


def sweep_front(
    compiler: Compiler, axis: str, values: Sequence[float], budgets: Budgets, judge: Judge, scale: float = 1.0
) -> list[dict[str, Any]]:
    """A plan for each value of one budget, chosen as `Compiler.solve` does and judged on samples nothing else looks at.

    Args:
        axis: "memory" (bytes) or "latency" (seconds).
        values: of that budget, rising.
        budgets: the other limits.
        judge: of the samples that only judge.
        scale: latency measured end to end over the sum of kernels.

    Returns:
        One dict for each value that some plan keeps: budget, bytes, predicted_ms, predicted_loss, bound, gap,
        held_out_loss, agreement, accuracy, plan (which candidate won) and bits.
    """
    from qcompile.errors import InfeasibleError

    rows = []
    for done, value in enumerate(values):
        compiler.progress("sweep", done, len(values))
        try:
            limited = replace(budgets, memory=int(value)) if axis == "memory" else replace(budgets, latency=value)
            planned = compiler.solve(limited, scale)
        except InfeasibleError:
            continue
        chosen = next(row for row in planned.candidates if row["chosen"])
        rows.append({
            "budget": value, "plan": chosen["plan"], "bytes": int(chosen["predicted"]["memory"]),
            "predicted_ms": chosen["predicted"]["latency"] * 1e3, "predicted_loss": chosen["predicted"]["loss"],
            "bound": planned.solver.get("bound"), "gap": planned.solver.get("gap"),
            "held_out_loss": chosen["loss"], "agreement": chosen["agreement"],
            "accuracy": judge.drop(choices(planned.bits)).to_json(),
            "bits": {layer: list(pair) for layer, pair in planned.bits.items()},
        })  # fmt: skip
    compiler.progress("sweep", len(values), len(values))
    return rows
