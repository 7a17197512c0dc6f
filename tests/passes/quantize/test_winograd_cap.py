"""Integers capped for the Winograd kernel: a planted layer of 5 and 6 bits."""

from __future__ import annotations

import numpy as np
import pytest

from passes.quantize.gptq import damped, quadratic_error, round_layer
from passes.quantize.winograd_cap import DEAREST, cap, capped, transformed
from targets._tvm.packing import winograd_transform

LIMIT = 127


def planted(bits: int, flat: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
    """A layer (8 outputs, 6 inputs) in which `flat` filters are all large and of one sign, rounded by GPTQ."""
    rng = np.random.default_rng(bits)
    w = rng.normal(size=(8, 6, 9)) / 2
    w[np.arange(flat) % 8, np.arange(flat) % 6] = 1.4 + 0.1 * rng.random((flat, 9))
    flat_w = w.reshape(8, 54)
    x = rng.normal(size=(400, 54)) + rng.normal(size=(400, 1))
    h = damped((x.T @ x / 400)[None])
    q, scale = round_layer(flat_w[None], h, bits, np.array([1.0]), 4)
    return q[0], scale[0], flat_w, h[0], (1 << (bits - 1)) - 1


def test_the_transform_is_the_kernels() -> None:
    q = np.random.default_rng(0).integers(-15, 16, size=(4, 3, 3, 3))
    ours = transformed(q.reshape(4, -1).astype(np.float64))
    np.testing.assert_array_equal(np.sort(ours.ravel()), np.sort(winograd_transform(q.astype(np.int8), 2).ravel()))


@pytest.mark.parametrize("bits", [5, 6])
def test_a_few_large_filters_are_pulled_in(bits: int) -> None:
    q, scale, w, h, top = planted(bits, 2)
    assert np.abs(transformed(q)).max() > LIMIT
    found = capped(q, scale, w, h, top, LIMIT)
    assert np.abs(transformed(found)).max() <= LIMIT and found.min() >= -top - 1 and found.max() <= top
    assert (found == np.rint(found)).all()


def test_it_is_refused_where_it_costs_too_much_and_free_where_all_fit() -> None:
    q, scale, w, h, top = planted(6, 8)
    assert cap(q, scale, w, h, top, LIMIT) is None
    assert cap(q, scale, w, h, top, 10**6) is q


def test_taken_where_the_descent_makes_up_for_it() -> None:
    """A filter just beyond the limit: |U| = 135."""
    rng = np.random.default_rng(3)
    w = rng.normal(size=(4, 54)) * 4
    w[0, :9] = 14.6
    scale, h = np.ones(4), np.eye(54)
    q = np.clip(np.rint(w), -15, 15)
    assert np.abs(transformed(q)).max() > LIMIT
    found = cap(q, scale, w, h, 15, LIMIT)
    assert found is not None and np.abs(transformed(found)).max() <= LIMIT
    before, after = (quadratic_error(x[None], scale[None], w[None], h[None]).sum() for x in (q, found))
    assert after <= DEAREST * before
