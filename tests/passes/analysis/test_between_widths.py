"""Losses at every second width, and what is said of those between."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from passes.analysis.between_widths import every_second, filled
from passes.analysis.subjects import Choice


def choices(subject: str, *widths: int) -> list[Choice]:
    return [Choice(subject, bits) for bits in widths]


@pytest.mark.parametrize(
    ("offered", "measured"),
    [
        ((2, 3, 4, 5, 6, 7, 8), [2, 4, 6, 8]),
        ((4, 5, 6, 7, 8), [4, 6, 8]),
        ((2, 4, 8), [2, 4, 8]),
        ((3, 4, 6, 7, 8), [3, 4, 6, 8]),
        ((3, 4), [3, 4]),
        ((8,), [8]),
    ],
)
def test_which_widths_are_measured(offered: tuple[int, ...], measured: list[int]) -> None:
    both = choices("w:one", *offered) + choices("w:two", 5)
    assert [c.bits for c in every_second(both) if c.subject == "w:one"] == measured
    assert every_second(both)[-1] == Choice("w:two", 5)


def test_losses_that_fall_evenly_are_found_again() -> None:
    """Planted: a factor of 4 for each bit."""
    every = choices("w:c", *range(2, 8)) + choices("a:x", *range(4, 9))
    true = np.array([4.0**-c.bits * (3 if c.of_weights else 7) for c in every])
    measured = every_second(every)
    loss = np.array([true[every.index(c)] for c in measured])
    found = filled(every, measured, loss, 0.1 * loss, optimized=True)
    np.testing.assert_allclose(found.loss, true)
    kept = np.array([c in measured for c in every])
    np.testing.assert_allclose(found.error[kept], 0.1 * true[kept])
    np.testing.assert_allclose(found.error[~kept], np.hypot(0.1, 0.2) * true[~kept])
    alike = [measured[i] for i in found.like]
    assert all(
        a.subject == c.subject and a.bits == (c.bits if c in measured else c.bits - 1)
        for a, c in zip(alike, every, strict=True)
    )


@pytest.mark.parametrize(
    ("optimized", "subject", "seven"), [(True, "w:c", 0.25), (False, "w:c", 0.5), (True, "a:c", 0.5)]
)
def test_the_step_to_nearest_rounding_is_no_neighbour(optimized: bool, subject: str, seven: float) -> None:
    """Losses 16, 1 and 1/4 at 4, 6 and 8 bits: GPTQ's go on by 1/4 a bit to 7, while 8 bits are rounded to nearest."""
    every = choices(subject, *range(4, 9))
    loss = np.array([16.0, 1.0, 0.25])
    found = filled(every, every_second(every), loss, 0 * loss, optimized=optimized)
    assert found.loss.tolist() == pytest.approx([16, 4, 1, seven, 0.25])


@given(st.lists(st.floats(0, 1e6), min_size=4, max_size=4))
def test_filled_losses_lie_between_their_neighbours(given_: list[float]) -> None:
    every = choices("w:c", *range(2, 9))
    loss = np.array(given_)
    found = filled(every, every_second(every), loss, loss, optimized=True).loss
    for i in (1, 3, 5):
        low, high = sorted((found[i - 1], found[i + 1]))
        assert low * (1 - 1e-12) <= found[i] <= high * (1 + 1e-12)
    assert np.isfinite(found).all()


def test_a_width_between_none_is_refused() -> None:
    with pytest.raises(ValueError, match="between no measured widths"):
        filled(choices("w:c", 2, 3), choices("w:c", 2), np.ones(1), np.ones(1), optimized=False)
