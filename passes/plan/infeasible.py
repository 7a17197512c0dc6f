"""What is the best that is possible, for the message when no plan keeps the limits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fractions import Fraction

from passes.plan import ilp
from qcompile.errors import InfeasibleError
from qcompile.units import format_bytes, format_seconds

_PHRASES = {
    "latency": ("the fastest plan", "takes"),
    "memory": ("the smallest plan", "takes"),
    "activations": ("the plan with the smallest peak", "needs"),
}


def infeasible_error(problem: ilp.Problem, seconds: float, *, pins: bool) -> InfeasibleError:
    """The error for a problem without a plan: the best possible value of each limit that cannot be kept.

    Each limit is minimised under the others; one that cannot be kept even alone is stated without them.

    Args:
        problem: the infeasible one.
        seconds: time for the solver, for each minimisation.
        pins: whether layers are pinned, for the hint.
    """
    alone = [_best(problem, limit, (), seconds) for limit in problem.limits]
    hopeless = [_sentence(limit, best) for limit, best in zip(problem.limits, alone, strict=True) if _over(limit, best)]
    hint = "raise the limit" + ("s" if len(problem.limits) > 1 else "")
    hint += ", or pin fewer layers" if pins else ", or allow smaller bit widths"
    if hopeless:
        return _error(hopeless, hint, zip(problem.limits, alone, strict=True))
    if all(best is None for best in alone):
        return InfeasibleError(
            "the layers that read the same values offer no activation width in common",
            hint="pin fewer layers",
        )
    joint, least = [], []
    for limit in problem.limits:
        others = tuple(other for other in problem.limits if other is not limit)
        best = _best(problem, limit, others, seconds)
        if _over(limit, best):
            joint.append(_sentence(limit, best, others))
            least.append((limit, best))
    if joint:
        return _error(joint, hint, least)
    names = " and ".join(f"{limit.name} {_show(limit.name, limit.bound)}" for limit in problem.limits)
    return InfeasibleError(f"no plan keeps {names} together", hint=hint)


def _error(sentences: Sequence[str], hint: str, least: Iterable[tuple[ilp.Limit, Fraction | None]]) -> InfeasibleError:
    error = InfeasibleError("; ".join(sentences), hint=hint)
    error.least = {limit.name: float(best) for limit, best in least if best is not None and best > limit.bound}
    return error


def _best(problem: ilp.Problem, limit: ilp.Limit, others: tuple[ilp.Limit, ...], seconds: float) -> Fraction | None:
    found = ilp.minimise(replace(problem, limits=others), limit.rows, seconds=seconds)
    return None if found.plan is None else limit.value(found.plan)


def _over(limit: ilp.Limit, best: Fraction | None) -> bool:
    return best is not None and best > limit.bound


def _sentence(limit: ilp.Limit, best: Fraction | None, others: tuple[ilp.Limit, ...] = ()) -> str:
    assert best is not None  # `_over` has seen it
    wanted, possible = _show(limit.name, limit.bound), _possible(limit.name, best)
    subject, verb = _PHRASES[limit.name]
    if others:
        subject += f" that keeps {' and '.join(f'{o.name} {_show(o.name, o.bound)}' for o in others)}"
    return f"{limit.name} {wanted}: {subject} {verb} {possible}"


def _show(name: str, value: Fraction) -> str:
    return format_seconds(float(value)) if name == "latency" else format_bytes(float(value))


def _possible(name: str, value: Fraction) -> str:
    """A value that works when it is given as the limit: exact bytes, milliseconds rounded up in the fifth digit."""
    if name != "latency":
        size = math.ceil(value)
        return f"{size} B" if size < 1024 else f"{size} B ({format_bytes(size)})"
    ms = float(value) * 1e3
    digits = 4 - math.floor(math.log10(ms)) if ms > 0 else 0
    return f"{math.ceil(ms * 10**digits) / 10**digits:.10g} ms"
