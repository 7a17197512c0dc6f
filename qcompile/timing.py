"""Times that a busy machine cannot move: a program beside a reference, turn by turn.

Other processes, clocks and temperature change what an inference takes by far more than a bit width does, but they
change it for two programs alike that run in turns of a few hundredths of a second.  So what is kept of a program is the
median of its ratios to the reference, and its seconds are that ratio times the reference's own, the quietest ever seen
twice.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from qcompile.target.backend import Executable, Measurement
from qcompile.target.turns import confirmed, most_credible

TURN_SECONDS = 0.06
"""Of one program in one round."""

LEAST_ROUNDS, MOST_ROUNDS = 7, 31
"""Rounds until the median is steady."""

STEADY = 0.01
"""Standard error of a ratio, relative, that is good enough where no limit is close."""

TURNS, MOST_TURNS = 3, 8
"""Medians taken of a program alone; more of them only while a budget is missed: interference only ever adds."""

AGREEMENT, MOST_ALONE = 0.02, 16
"""How close two turns of a program must be to confirm each other, and how many are taken for it at most."""

Turn = Callable[[int], Measurement]
"""Times so many calls."""


@dataclass(frozen=True, slots=True)
class Beside:
    """What rounds found.

    Attributes:
        ratios: of the program's median to the reference's, one for each round.
        own, reference: their confirmed medians at the clock asked for, seconds.
    """

    ratios: tuple[float, ...]
    own: float
    reference: float

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def error(self) -> float:
        """About the standard error of the ratio, from the median distance to it: single rounds have no say."""
        distance = statistics.median(abs(value - self.ratio) for value in self.ratios)
        return float(1.4826 * 1.2533 * distance / len(self.ratios) ** 0.5)


def time_beside(
    own: Turn, reference: Turn, calls: tuple[int, int], limit: float | None = None, clock: float = 0.0
) -> Beside:
    """Rounds of one turn each, in changing order, until the median ratio is steady.

    Args:
        own, reference: time one turn.
        calls: of a turn of either.
        limit: a ratio that decides something; where it is within two standard errors, more rounds are taken.
        clock: what `qcompile.target.clock.probe` gave where seconds count; ratios need none.
    """
    turns: tuple[list[Measurement], list[Measurement]] = ([], [])
    while True:
        for which in (0, 1) if len(turns[0]) % 2 else (1, 0):
            turns[which].append((own, reference)[which](calls[which]))
        ratios = tuple(a.median / b.median for a, b in zip(*turns, strict=True))
        quietest = [most_credible(each, clock, AGREEMENT).median for each in turns]
        found = Beside(ratios, quietest[0], quietest[1])
        undecided = limit is not None and abs(found.ratio - limit) < 2 * found.error
        steady = len(ratios) >= LEAST_ROUNDS and found.error <= STEADY * found.ratio and not undecided
        if steady or len(ratios) == MOST_ROUNDS:
            return found


def turn_of(executable: Executable, threads: int) -> Turn:
    """A turn of a built program, single samples."""
    return lambda calls: executable.measure(threads, calls)


def calls_for(seconds: float) -> int:
    """How many calls of about `seconds` make a turn."""
    return int(min(2000, max(3, TURN_SECONDS / max(seconds, 1e-9))))


def time_steady(executable: Executable, threads: int) -> Measurement:
    """The quietest turn of a program alone that another confirms: what others will be measured by."""
    turns = [executable.measure(threads, 0) for _ in range(TURNS)]
    while (found := confirmed(turns, turns[0].clock, AGREEMENT)) is None and len(turns) < MOST_ALONE:
        turns.append(executable.measure(threads, 0))
    return found or most_credible(turns, turns[0].clock, AGREEMENT)


def time_executable(executable: Executable, threads: int, budget: float | None = None) -> Measurement:
    """The quietest of several turns; with a budget in seconds more turns are taken while it is missed."""
    best = executable.measure(threads, 0)
    for turn in range(1, MOST_TURNS):
        if turn >= TURNS and (budget is None or best.median <= budget):
            break
        best = min(best, executable.measure(threads, 0), key=lambda m: m.median)
    return best
