"""The one message that lists everything a model holds that cannot be captured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qcompile.errors import UnsupportedOpError

_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Problem:
    """A node that cannot be captured, and why."""

    node: str
    op: str
    reason: str


def unsupported(problems: Sequence[Problem], supported: Sequence[str]) -> UnsupportedOpError:
    """The error for a list of problems: those with one operator and reason share a line."""
    groups: dict[tuple[str, str], list[str]] = {}
    for problem in problems:
        groups.setdefault((problem.op, problem.reason), []).append(problem.node)
    lines = []
    for (op, reason), nodes in groups.items():
        more = f" and {len(nodes) - _SHOWN} more" if len(nodes) > _SHOWN else ""
        lines.append(f"  {op}: {reason}\n    at {', '.join(nodes[:_SHOWN])}{more}")
    count = f"{len(problems)} node{'s' if len(problems) > 1 else ''} of the model cannot be captured"
    return UnsupportedOpError("\n".join([f"{count}:", *lines]), hint=f"supported operators: {', '.join(supported)}")
