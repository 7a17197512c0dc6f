"""GPTQ on its own objective beside rounding to nearest: a thousand planted layers, no channel worse."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from passes.quantize.gptq import (
    MANY,
    SINGLE_FROM,
    best_of,
    damped,
    factorised,
    gptq,
    nearest,
    quadratic_error,
    round_columns,
    round_layer,
    shrunk,
    unclipped_scale,
)
from passes.quantize.layer_rounding import FINE_FROM, USUAL_SHARE, candidate_shares, round_moments
from passes.quantize.round_candidates import candidate_scales, round_at_widths
from qcompile.exec.row_parts import LEAST
from qcompile.exec.torch_moments import Moments
from qcompile.ir import GraphBuilder, TensorType

SHRINK = np.array([1.0, 0.9, 0.8])


def planted(seed: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Weights (G, R, K), second moments (G, K, K) from independent to nearly singular, and a width."""
    rng = np.random.default_rng(seed)
    groups, rows, columns = int(rng.integers(1, 4)), int(rng.integers(1, 5)), int(rng.integers(2, 28))
    samples = int(rng.integers(2, 3 * columns))
    x = rng.normal(size=(groups, samples, columns)) + rng.choice([0, 1, 5]) * rng.normal(size=(groups, samples, 1))
    x *= 10 ** rng.uniform(-1, 1, size=columns)
    w = rng.standard_t(3, size=(groups, rows, columns))
    return w, damped(x.swapaxes(1, 2) @ x / samples), int(rng.choice([2, 3, 4, 6, 8]))


@pytest.mark.parametrize("sweeps", [0, 3])
def test_no_channel_is_worse_than_nearest(sweeps: int) -> None:
    for seed in range(1000):
        w, h, bits = planted(seed)
        top = (1 << (bits - 1)) - 1
        scale = unclipped_scale(w, top)
        plain = quadratic_error(nearest(w, scale[..., None], top), scale, w, h)
        q, own = round_layer(w, h, bits, SHRINK, sweeps)
        found = quadratic_error(q, own, w, h)
        assert (found <= plain * (1 + 1e-9)).all(), (seed, bits, w.shape, found / plain)


def test_the_errors_of_all_roundings_are_their_quadratic_errors() -> None:
    for seed in range(30):
        w, h, bits = planted(seed)
        top = (1 << (bits - 1)) - 1
        scales = np.abs(w).max(axis=2)[:, None] / top * SHRINK[:, None]
        factor = factorised(h)
        q, error = round_columns(w, factor, scales.reshape(len(w), -1), top)
        apart = [gptq(w, h, scales[:, i], top) for i in range(len(SHRINK))]
        together = factor.rows(q)
        np.testing.assert_array_equal(together, np.concatenate(apart, axis=1))
        wanted = [quadratic_error(one, scales[:, i], w, h) for i, one in enumerate(apart)]
        np.testing.assert_allclose(error, np.concatenate(wanted, axis=1), rtol=1e-8)
        best, scale = best_of(w, factor, scales, top)
        np.testing.assert_allclose(quadratic_error(best, scale, w, h), np.min(wanted, axis=0), rtol=1e-8)


def test_single_precision_is_as_good() -> None:
    """Columns as many as layers that run in single precision have, and few samples: damping carries most of H."""
    rng = np.random.default_rng(5)
    x = np.maximum(rng.normal(size=(1, 300, SINGLE_FROM)) + rng.normal(size=(1, 300, 1)), 0)
    w, h = rng.normal(size=(1, 6, SINGLE_FROM)), damped(x.swapaxes(1, 2) @ x / 300)
    scale = np.abs(w).max(axis=2) / 7
    double = quadratic_error(gptq(w, h, scale, 7), scale, w, h)
    q = gptq(w.astype(np.float32), h.astype(np.float32), scale.astype(np.float32), 7)
    assert q.dtype == np.float32
    single = quadratic_error(q.astype(np.float64), scale, w, h)
    assert single.sum() < 1.02 * double.sum() and double.sum() < 1.02 * single.sum()
    chosen, own = round_layer(w, h, 4, SHRINK, 3)
    assert chosen.dtype == own.dtype == np.float32
    assert quadratic_error(chosen.astype(np.float64), own.astype(np.float64), w, h).sum() < double.sum()


def test_threads_change_no_integer(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 400, 96)) @ rng.normal(size=(96, 96))
    # Parts do not begin where candidates do.
    w, h = rng.normal(size=(1, 5 * LEAST + 3, 96)), damped(x.swapaxes(1, 2) @ x / 400)
    found = []
    for threads in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append(round_layer(w, h, 4, np.array([1.0, 0.9, 0.8]), 3))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1], found[1][1])


def many_columns() -> tuple[np.ndarray, np.ndarray]:
    """Two rows of as many weights as are looked at less finely, and the columns of 64 samples, (64, MANY)."""
    rng = np.random.default_rng(6)
    x = np.maximum(rng.normal(size=(64, MANY)) + rng.normal(size=(64, 1)), 0)
    return rng.normal(size=(1, 2, MANY)), x


def test_layers_of_many_columns_are_looked_at_less_finely_and_are_never_worse_than_nearest() -> None:
    assert len(candidate_shares(FINE_FROM, MANY)) < len(candidate_shares(FINE_FROM, MANY - 1))
    assert len(candidate_shares(4, MANY)) == len(candidate_shares(4, MANY - 1))
    counts = {bits: len(candidate_scales(bits, MANY)) for bits in range(2, 8)}
    assert counts == {bits: 4 if bits < FINE_FROM else 1 for bits in range(2, 8)}
    assert all(candidate_scales(bits, MANY)[0] == 1 for bits in range(2, FINE_FROM))
    assert all(0.8 < candidate_scales(bits, MANY)[0] < 1 for bits in range(FINE_FROM, 8))
    w, x = many_columns()
    h = damped((x.T @ x / len(x))[None])
    rounded = round_at_widths(w, h, (2, 6, 7), 2)
    assert list(rounded) == [6, 7, 2]
    for bits, (q, scale) in rounded.items():
        top = (1 << (bits - 1)) - 1
        plain = unclipped_scale(w, top)
        found = quadratic_error(q.astype(float), scale.astype(float), w, h)
        assert (found < quadratic_error(nearest(w, plain[..., None], top), plain, w, h)).all()


@pytest.mark.parametrize("bits", [FINE_FROM - 1, FINE_FROM])
def test_fine_layers_of_many_columns_are_not_cross_validated(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[float] = []

    def shrink(h: np.ndarray, share: float) -> np.ndarray:
        used.append(share)
        return shrunk(h, share)

    monkeypatch.setattr("passes.quantize.layer_rounding.shrunk", shrink)
    monkeypatch.setattr("passes.quantize.layer_rounding.choose_follow", lambda *_: np.inf)
    monkeypatch.setattr("passes.quantize.layer_rounding.choose_share", lambda *_: 0.1)
    w, x = many_columns()
    b = GraphBuilder("net", "float")
    given = b.input("x", TensorType((-1, MANY), "f32"))
    b.output("y", b.add("linear", [given], name="fc", consts={"w": w[0].astype(np.float32)}))
    moments = Moments(b.build().by_name["fc"], w[0], 1, np.random.default_rng(0), folds=2)
    moments.add(torch.from_numpy(x.astype(np.float32)))
    round_moments(w, w[0].shape, moments, bits, "gptq", 1, 0)
    assert used == [USUAL_SHARE if bits >= FINE_FROM else 0.1]
