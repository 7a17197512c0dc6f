"""Cross-validated trust in second moments: planted cases with too few samples and with plenty."""

from __future__ import annotations

import numpy as np

from passes.quantize.gptq import follow, quadratic_error, round_layer, shrunk
from passes.quantize.shrinkage import JUDGED, choose_follow, choose_share, judged, least

SIZE, TOP = 96, 7


def halves(rng: np.random.Generator, mix: np.ndarray, n: int) -> np.ndarray:
    """Second moments of n samples with covariance mix mixᵀ, in two halves: (2, 1, SIZE, SIZE)."""
    x = rng.normal(size=(2, n // 2, len(mix))) @ mix.T
    return (x.swapaxes(1, 2) @ x / (n // 2))[:, None]


def test_many_samples_are_trusted_and_few_are_not() -> None:
    """With few, the choice makes the error on fresh samples smaller than full trust does."""
    rng = np.random.default_rng(0)
    mix = np.eye(SIZE) + 0.3 * rng.normal(size=(SIZE, SIZE)) / 4
    w = rng.normal(size=(1, 16, SIZE))
    scale = np.abs(w).max(axis=2) / TOP
    fresh = (mix @ mix.T)[None]
    many, few = halves(rng, mix, 20000), halves(rng, mix, 40)
    assert choose_share(w, many, scale, TOP) == 0.0
    share = choose_share(w, few, scale, TOP)
    assert share > 0.0
    errors = []
    for chosen in (share, 0.0):
        q, own = round_layer(w, shrunk(few.mean(axis=0), chosen), 4, np.array([1.0, 0.9, 0.8]), 2)
        errors.append(quadratic_error(q, own, w, fresh).sum())
    assert errors[0] < 0.8 * errors[1], errors


def test_following_noise_is_refused_and_following_a_shift_is_not() -> None:
    rng = np.random.default_rng(1)
    w = rng.normal(size=(1, 8, SIZE))
    for planted, n, refused in ((0.0, 60, True), (0.3, 4000, False)):
        x = rng.normal(size=(2, n // 2, SIZE))
        d = planted * x + 0.3 * rng.normal(size=x.shape)
        xx, dx = (((a.swapaxes(1, 2) @ x) / (n // 2))[:, None] for a in (x, d))
        tx = w @ dx
        damping = choose_follow(w, xx, tx)
        assert (damping == np.inf) == refused
        if refused:
            np.testing.assert_array_equal(follow(w, xx[0], tx[0], damping), w)
        else:
            np.testing.assert_allclose(follow(w, xx.mean(0), tx.mean(0), damping), 1.3 * w, atol=0.25)


def test_the_least_risk_is_found_downhill() -> None:
    for lowest in range(4):
        tried: list[float] = []

        def risk(candidate: float, lowest: int = lowest, tried: list[float] = tried) -> float:
            tried.append(candidate)
            return abs(candidate - 10.0 * lowest)

        assert least(risk, (0.0, 10.0, 20.0, 30.0)) == 10.0 * lowest
        assert len(tried) == len(set(tried)) <= 4


def test_rows_that_are_judged_lie_evenly_over_all() -> None:
    np.testing.assert_array_equal(judged(5), np.arange(5))
    rows = judged(JUDGED * 3 + 1)
    assert len(set(rows)) == JUDGED and rows[0] == 0 and rows[-1] > 3 * JUDGED - 4
