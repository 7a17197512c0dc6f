"""Tuned scales and biases: planted errors are taken back, integers stay, mirrored pictures and softened answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qcompile.exec.torch_exec import TorchGraph
from qcompile.exec.torch_loss import CLASSES, PROBABILITIES, VALUES, OutputLoss
from qcompile.exec.torch_scales import Outcome, ScaleSchedule, Tuned, mean_loss, tune_scales
from qcompile.exec.torch_teacher import Teacher
from qcompile.ir import Array, Graph, GraphBuilder, TensorType

TOP = 127
RNG = np.random.default_rng(1)
X = RNG.normal(size=(192, 12)).astype(np.float32)
LAYERS = ("one", "two")


def net() -> Graph:
    rng = np.random.default_rng(0)

    def const(*shape: int) -> Array:
        return rng.normal(size=shape).astype(np.float32)

    b = GraphBuilder("net", "float")
    x = b.input("x", TensorType((-1, 12), "f32"))
    h = b.add("linear", [x], name="one", consts={"w": const(16, 12), "b": const(16)})
    h = b.add("clip", [h], name="relu", attrs={"lo": 0.0})
    b.output("y", b.add("linear", [h], name="two", consts={"w": const(5, 16) / 4, "b": const(5)}))
    return b.build()


def rounded(graph: Graph) -> dict[str, tuple[Array, Tuned]]:
    """Weights to nearest on a fine grid: all that is wrong is what a test makes so."""
    found = {}
    for name in LAYERS:
        w, b = (graph.const(graph.by_name[name], role).astype(np.float64) for role in ("w", "b"))
        scale = np.abs(w).max(axis=1) / TOP
        found[name] = np.rint(w / scale[:, None]).astype(np.int8), (scale, b)
    return found


def spoilt(graph: Graph) -> dict[str, tuple[Array, Tuned]]:
    """Scales up to a tenth too large or too small, biases off by up to a tenth."""
    rng = np.random.default_rng(4)
    found = {}
    for name, (q, (scale, b)) in rounded(graph).items():
        found[name] = q, (scale * rng.uniform(0.9, 1.1, scale.shape), b + rng.uniform(-0.1, 0.1, b.shape))
    return found


def teacher(graph: Graph, x: Array = X) -> Teacher:
    return Teacher(graph, [{"x": x[:50]}, {"x": x[50:]}], lambda _, v: v)


def tuned(start: dict[str, tuple[Array, Tuned]], schedule: ScaleSchedule, seed: int = 0) -> Outcome:
    return tune_scales(teacher(net()), start, schedule, seed)


def test_planted_errors_are_taken_back() -> None:
    graph = net()
    start, seen = spoilt(graph), []
    schedule = ScaleSchedule(epochs=60, scales=3e-3, biases=3e-3)
    found = tune_scales(teacher(graph), start, schedule, 0, lambda done, total: seen.append((done, total)))
    assert found.after < 0.1 * found.before
    assert mean_loss(teacher(graph), start) == found.before
    assert mean_loss(teacher(graph), {n: (start[n][0], found.layers[n]) for n in LAYERS}) == pytest.approx(
        found.after, rel=1e-3
    )
    assert seen == [(i, 60 * 12) for i in range(60 * 12)]
    other = np.random.default_rng(9).normal(size=(500, 12)).astype(np.float32)
    judge = teacher(graph, other)

    def loss(layers: dict[str, Tuned]) -> float:
        made = {}
        for name, (scale, b) in layers.items():
            made[name] = torch.tensor(start[name][0] * scale[:, None]).float(), torch.tensor(b).float()
        return judge.mean(made)

    before, after = loss({name: given for name, (_, given) in start.items()}), loss(found.layers)
    assert after < 0.15 * before
    again = tuned(start, schedule)
    for name in LAYERS:
        for one, other_one in zip(found.layers[name], again.layers[name], strict=True):
            assert one.dtype == np.float64
            np.testing.assert_array_equal(one, other_one)
    assert any((tuned(start, schedule, seed=1).layers[name][0] != found.layers[name][0]).any() for name in LAYERS)


def test_answers_are_softened_while_tuning() -> None:
    found = [tuned(spoilt(net()), ScaleSchedule(epochs=2, temperature=t)).layers["one"][0] for t in (1.0, 3.0)]
    assert (found[0] != found[1]).any()


def test_what_is_not_better_is_not_taken() -> None:
    start = spoilt(net())
    for schedule in (ScaleSchedule(epochs=0), ScaleSchedule(epochs=2, scales=1.0, biases=5.0)):
        found = tuned(start, schedule)
        assert found.before == found.after > 0
        for name, (_, given) in start.items():
            assert found.layers[name] is given


def test_a_step_in_parts_is_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large pictures go through the network a few at a time; the gradient is that of all."""
    schedule = ScaleSchedule(epochs=3, scales=3e-3, biases=3e-3)
    whole = tuned(spoilt(net()), schedule)

    def few(*given: object) -> Teacher:
        made = Teacher(*given)  # type: ignore[arg-type]
        made.together = 3
        return made

    parts = tune_scales(few(net(), [{"x": X}], lambda _, v: v), spoilt(net()), schedule, 0)
    assert parts.after == pytest.approx(whole.after, rel=1e-4)
    for name in LAYERS:
        np.testing.assert_allclose(parts.layers[name][0], whole.layers[name][0], rtol=1e-4)


@pytest.mark.parametrize(("channels", "sides"), [(3, 2), (1, 1)])
def test_pictures_are_mirrored(channels: int, sides: int) -> None:
    b = GraphBuilder("net", "float")
    x = b.input("x", TensorType((-1, channels, 4, 4), "f32"))
    w = np.random.default_rng(2).normal(size=(3, 16 * channels)).astype(np.float32)
    flat = b.add("reshape", [x], name="flat", attrs={"shape": (-1, 16 * channels)})
    b.output("y", b.add("linear", [flat], name="fc", consts={"w": w}))
    graph = b.build()
    pictures = np.random.default_rng(3).normal(size=(40, channels, 4, 4)).astype(np.float32)
    found = Teacher(graph, [{"x": pictures}], lambda _, v: v)
    assert found.sides == sides
    made = {"fc": (torch.tensor(w), torch.zeros(3))}
    assert found.mean(made) == pytest.approx(0, abs=1e-9)
    assert float(found.loss(made, torch.arange(7), sides - 1)) == pytest.approx(0, abs=1e-9)
    # What a side compares with are the float network's answers to the same pictures.
    other = {"fc": (torch.tensor(w) * 1.3, torch.zeros(3))}
    shown = pictures[:7, :, :, ::-1].copy() if sides == 2 else pictures[:7]
    z = TorchGraph(graph).run({"x": shown})["y"].double()
    p, q = z.log_softmax(1), (z * 1.3).log_softmax(1)
    expected = float((p.exp() * (p - q)).sum(1).mean())
    assert float(found.loss(other, torch.arange(7), sides - 1)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", [CLASSES, PROBABILITIES])
def test_softened_answers(kind: str) -> None:
    """The divergence of both at the temperature, times its square; near the reference about the same at any."""
    rng = np.random.default_rng(6)
    z = torch.tensor(rng.normal(size=(9, 4)) * 3)
    near, far = z + 1e-3 * torch.tensor(rng.normal(size=(9, 4))), z + torch.tensor(rng.normal(size=(9, 4)))
    shown = [x.softmax(1) if kind == PROBABILITIES else x for x in (z, near, far)]
    loss = OutputLoss(kind, weight=0.5)
    for x, real in zip(shown[1:], (near, far), strict=True):
        p, q = (z / 3).softmax(1), (real / 3).softmax(1)
        expected = 0.5 * 9 * (p * (p / q).log()).sum(1)
        torch.testing.assert_close(loss.softened(x, shown[0], 3.0), expected, rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(loss.softened(shown[2], shown[0], 1.0), loss(shown[2], shown[0]))


def test_values_have_no_temperature() -> None:
    z, reference = torch.ones(3, 4), torch.zeros(3, 4)
    loss = OutputLoss(VALUES, variance=2.0)
    torch.testing.assert_close(loss.softened(z, reference, 3.0), loss(z, reference))
