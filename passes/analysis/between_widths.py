"""What lies between two measured widths: large networks are measured at every second one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from passes.analysis.subjects import Choice
from passes.quantize.layer_rounding import EXACT_FROM

Float = NDArray[np.float64]

INTERPOLATION_ERROR = 0.2
"""Relative: deviation of measured losses from the geometric mean of their neighbours', 0.10 to 0.21 over the layers of
ResNet-20, ResNet-8 and SqueezeNet."""


def every_second(choices: Sequence[Choice]) -> list[Choice]:
    """The choices without those whose subject is kept at one bit less and offered at one more."""
    offered, kept = set(choices), set()
    for choice in sorted(choices, key=lambda c: (c.subject, c.bits)):
        if _at(choice, -1) not in kept or _at(choice, 1) not in offered:
            kept.add(choice)
    return [choice for choice in choices if choice in kept]


def _at(choice: Choice, further: int) -> Choice:
    return Choice(choice.subject, choice.bits + further)


@dataclass(frozen=True, slots=True, eq=False)
class Filled:
    """Of all choices.

    Attributes:
        loss, error: and its standard error, (V,).
        like: number of the measured choice whose changes stand for those of each: itself, or the one of one bit less.
    """

    loss: Float
    error: Float
    like: NDArray[np.int64]


def filled(
    choices: Sequence[Choice], measured: Sequence[Choice], loss: Float, error: Float, *, optimized: bool
) -> Filled:
    """Losses of all choices from those `every_second` of them that were measured.

    One bit more takes about the same factor from a loss everywhere, so a loss is the geometric mean of its
    neighbours'.  Weights of fewer than `EXACT_FROM` bits that were rounded by GPTQ (`optimized`) lose less than
    rounding to nearest would let them; there the step from two narrower widths is continued, not below the wider one.

    Args:
        loss, error: of the measured choices.
    """
    row = {choice: i for i, choice in enumerate(measured)}
    found, errors, like = np.zeros(len(choices)), np.zeros(len(choices)), np.zeros(len(choices), np.int64)
    for i, choice in enumerate(choices):
        if choice in row:
            like[i] = row[choice]
            found[i], errors[i] = loss[like[i]], error[like[i]]
            continue
        below, above, before = (row.get(_at(choice, further)) for further in (-1, 1, -3))
        if below is None or above is None:
            raise ValueError(f"{choice} lies between no measured widths")
        narrow, wide = float(loss[below]), float(loss[above])
        kink = optimized and choice.of_weights and choice.bits < EXACT_FROM <= choice.bits + 1
        if kink and before is not None and loss[before] > 0:
            step = np.sqrt(narrow / float(loss[before]))
            found[i] = np.clip(narrow * step, min(wide, narrow), max(wide, narrow))
        else:
            found[i] = np.sqrt(max(narrow, 0.0)) * np.sqrt(max(wide, 0.0))
        known = [float(error[k] / loss[k]) for k in (below, above) if loss[k] > 0]
        errors[i] = found[i] * np.hypot(INTERPOLATION_ERROR, np.mean(known) if known else 0.0)
        like[i] = below
    return Filled(found, errors, like)
