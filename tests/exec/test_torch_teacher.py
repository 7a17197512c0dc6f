"""The float network as a teacher: which samples a step sees, at which rate, and what errors are measured in."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qcompile.exec.torch_teacher import Teacher
from qcompile.ir import Array, Graph, GraphBuilder, TensorType

RNG = np.random.default_rng(5)


def scaled(size: int, *shape: int, factor: float = 1.0) -> Graph:
    """A network of one product whose output is shaped like its input: a reconstruction, not scores of classes."""
    b = GraphBuilder("net", "float")
    x = b.input("x", TensorType((-1, *shape), "f32"))
    flat = b.add("reshape", [x], name="flat", attrs={"shape": (-1, size)}) if len(shape) > 1 else x
    b.output("y", b.add("linear", [flat], name="fc", consts={"w": factor * np.eye(size, dtype=np.float32)}))
    return b.build()


def teacher(graph: Graph, x: Array) -> Teacher:
    return Teacher(graph, [{"x": x}], lambda _, v: v)


def test_steps_see_every_sample_once_an_epoch_at_falling_rates() -> None:
    pictures = RNG.normal(size=(10, 3, 2, 2)).astype(np.float32)
    known = teacher(scaled(12, 3, 2, 2), pictures)
    optimizer = torch.optim.Adam([{"params": [torch.zeros(1)], "lr": 1.0}, {"params": [torch.zeros(1)], "lr": 0.5}])
    seen, sides, shares, rates, told = [], [], [], [], []
    for chosen, side, share in known.steps(optimizer, 3, 4, 7, lambda done, total: told.append((done, total))):
        seen.append(chosen.tolist())
        sides.append(side)
        shares.append(share)
        rates.append([group["lr"] for group in optimizer.param_groups])
    assert [len(part) for part in seen] == [4, 4, 2] * 3
    epochs = [[number for part in seen[i : i + 3] for number in part] for i in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert sides == [0] * 3 + [1] * 3 + [0] * 3
    assert shares == pytest.approx([i / 9 for i in range(9)])
    assert told == [(i, 9) for i in range(9)]
    expected = 0.5 * (1 + np.cos(np.pi * np.arange(9) / 9))
    np.testing.assert_allclose(rates, np.stack([expected, 0.5 * expected], axis=1))
    again = [chosen.tolist() for chosen, *_ in known.steps(optimizer, 3, 4, 7, lambda *_: None)]
    assert again == seen
    assert [chosen.tolist() for chosen, *_ in known.steps(optimizer, 3, 4, 8, lambda *_: None)] != seen


def test_errors_of_values_are_measured_in_their_variance() -> None:
    """Ten times as large a network with ten times as large an error loses the same."""
    x = RNG.normal(size=(40, 6)).astype(np.float32)
    losses = []
    for factor in (1.0, 10.0):
        off = factor * 1.1 * torch.eye(6)
        losses.append(teacher(scaled(6, 6, factor=factor), x).mean({"fc": (off, torch.zeros(6))}))
    assert losses[0] > 1e-3
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
