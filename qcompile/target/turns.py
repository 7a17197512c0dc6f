"""Which of several turns of one program to believe.

Interference makes a turn slow, and a disturbed `qcompile.target.clock.probe` makes it seem quick: neither end can be
trusted alone.  Two turns that took the same, at one clock, are unlikely to be both wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from qcompile.target.backend import Measurement


def confirmed(turns: Sequence[Measurement], clock: float, within: float) -> Measurement | None:
    """The quickest turn, brought to a clock, that another confirms; None where no two agree.

    Args:
        turns: of one program.
        clock: as `Measurement.at` takes it.
        within: by how much the next slower one may differ, relative.
    """
    ordered = _ordered(turns, clock)
    return next((a for a, b in pairwise(ordered) if b.median <= a.median * (1 + within)), None)


def most_credible(turns: Sequence[Measurement], clock: float, within: float) -> Measurement:
    """As `confirmed`; where no two agree, the quicker one of the two that differ least."""
    ordered = _ordered(turns, clock)
    if (found := confirmed(turns, clock, within)) is not None or len(ordered) == 1:
        return found or ordered[0]
    return min(pairwise(ordered), key=lambda pair: pair[1].median / pair[0].median)[0]


def _ordered(turns: Sequence[Measurement], clock: float) -> list[Measurement]:
    return sorted((turn.at(clock) for turn in turns), key=lambda turn: turn.median)
