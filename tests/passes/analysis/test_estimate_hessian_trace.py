"""estimate-hessian-trace and predict-loss against exact Hessians of small networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from passes.analysis.candidate_weights import nearest
from passes.analysis.estimate_hessian_trace import EstimateHessianTrace, mean_and_error
from passes.analysis.estimate_trace_loss import EstimateTraceLoss
from passes.analysis.measure_weight_error import MeasureWeightError
from passes.analysis.predict_loss import PredictLoss, monotone
from qcompile.errors import DataError, UsageError
from qcompile.exec.torch_loss import OutputLoss
from qcompile.ir import Array, Graph, GraphBuilder, TensorType
from qcompile.pm.base import PassContext
from qcompile.pm.facts import (
    ACTIVATION_TRACE,
    LOSS,
    RANGES,
    WEIGHT_ERROR,
    WEIGHT_TRACE,
    Range,
    Trace,
    WeightError,
)
from qcompile.semantics.grids import quantize_weights, weight_scales
from qcompile.target.model import Target

TARGET = Target("none", "", "")
N, WIDTH = 24, 5


def arrays() -> dict[str, Array]:
    rng = np.random.default_rng(7)
    shapes = {"x": (N, WIDTH), "w1": (6, WIDTH), "b1": (6,), "w2": (6, 6), "w3": (4, 6)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


DATA = arrays()


def residual_net(columns: int = 4) -> Graph:
    """x → l1 → relu → (l2 + shortcut) → relu → l3: a value that a layer and an addition read."""
    b = GraphBuilder("net", "float")
    x = b.input("x", TensorType((-1, WIDTH), "f32"))
    h = b.add("linear", [x], name="l1", consts={"w": DATA["w1"], "b": DATA["b1"]})
    h = b.add("clip", [h], name="r1", attrs={"lo": 0.0})
    s = b.add("add", [b.add("linear", [h], name="l2", consts={"w": DATA["w2"]}), h], name="sum")
    s = b.add("clip", [s], name="r2", attrs={"lo": 0.0})
    b.output("y", b.add("linear", [s], name="l3", consts={"w": DATA["w3"][:columns]}))
    return b.build()


def forward(x: torch.Tensor, w: dict[str, torch.Tensor], e: dict[str, torch.Tensor]) -> torch.Tensor:
    """The same net in torch, with a perturbation of what each layer reads (and nothing else reads)."""
    h = F.relu((x + e["x"]) @ w["l1"].T + torch.tensor(DATA["b1"]).to(x.dtype))
    s = F.relu((h + e["r1"]) @ w["l2"].T + h)
    return (s + e["r2"]) @ w["l3"].T


def exact(columns: int = 4, labels: Array | None = None) -> tuple[dict[str, float], dict[str, float]]:
    """Exact traces divided by the elements: by layer, and by what layers read (float64, full Hessians)."""
    x = torch.tensor(DATA["x"]).double()
    w = {"l1": DATA["w1"], "l2": DATA["w2"], "l3": DATA["w3"][:columns]}
    weights = {name: torch.tensor(a).double() for name, a in w.items()}
    still = {"x": torch.zeros(N, 5), "r1": torch.zeros(N, 6), "r2": torch.zeros(N, 6)}
    still = {name: zero.double() for name, zero in still.items()}
    z0 = forward(x, weights, still)
    variance = float(z0.var(unbiased=False))

    def loss(z: torch.Tensor) -> torch.Tensor:
        if labels is not None:
            return F.cross_entropy(z, torch.tensor(labels))
        if columns == 1:
            return 0.5 * ((z - z0) ** 2).mean() / variance
        p0 = z0.log_softmax(1)
        return (p0.exp() * (p0 - z.log_softmax(1))).sum(1).mean()

    def trace(name: str, base: dict[str, torch.Tensor], is_weight: bool) -> float:
        def at(block: torch.Tensor) -> torch.Tensor:
            moved = base | {name: block}
            return loss(forward(x, moved, still) if is_weight else forward(x, weights, moved))

        n = base[name].numel()
        hessian = torch.autograd.functional.hessian(at, base[name]).reshape(n, n)
        return float(hessian.diagonal().sum()) / (n if is_weight else n // N)

    return {k: trace(k, weights, True) for k in weights}, {k: trace(k, still, False) for k in still}


def context(labels: Array | None = None, seed: int = 0) -> PassContext:
    more = {} if labels is None else {"labels": labels}

    def stream():  # type: ignore[no-untyped-def]
        for i in range(0, N, 10):
            yield {"x": DATA["x"][i : i + 10]} | {k: v[i : i + 10] for k, v in more.items()}

    return PassContext(TARGET, calibration=stream, labels=labels is not None, seed=seed)


def estimate(
    pass_: EstimateHessianTrace, ctx: PassContext, columns: int = 4
) -> tuple[dict[str, Trace], dict[str, Trace]]:
    notes = pass_.run(residual_net(columns), ctx).graph.notes
    return dict(notes[WEIGHT_TRACE]), dict(notes[ACTIVATION_TRACE])


def assert_close(found: dict[str, Trace], true: dict[str, float]) -> None:
    assert set(found) == set(true)
    for name, trace in found.items():
        assert trace.standard_error < 0.25 * true[name]
        assert abs(trace.mean - true[name]) < 4 * trace.standard_error + 1e-6 * true[name], name


@pytest.mark.parametrize("method", ["gauss-newton", "hvp"])
@pytest.mark.parametrize("columns", [4, 1])
def test_estimates_equal_the_exact_trace(method: str, columns: int) -> None:
    pass_ = EstimateHessianTrace(method=method, probes=150, tolerance=0.0, batch=5)
    weights, values = estimate(pass_, context(), columns)
    true_weights, true_values = exact(columns)
    assert_close(weights, true_weights)
    assert_close(values, true_values)
    assert {t.probes for t in weights.values()} == {150}
    assert {t.samples for t in weights.values()} == {N}
    assert [values[name].numel for name in ("x", "r1", "r2")] == [5, 6, 6]


def test_cross_entropy_with_labels() -> None:
    labels = np.random.default_rng(1).integers(0, 4, N)
    pass_ = EstimateHessianTrace(method="hvp", probes=300, tolerance=0.0)
    weights, values = estimate(pass_, context(labels))
    true_weights, true_values = exact(labels=labels)
    assert_close(weights, true_weights)
    assert_close(values, true_values)


def test_without_labels_where_they_are_not_wanted() -> None:
    labels = np.zeros(N, np.int64)
    pass_ = EstimateHessianTrace(method="hvp", probes=3, use_labels="no")
    assert estimate(pass_, context(labels)) == estimate(pass_, context())


def test_stops_when_the_standard_error_is_small_enough() -> None:
    loose = estimate(EstimateHessianTrace(probes=400, tolerance=0.2), context())
    for trace in (*loose[0].values(), *loose[1].values()):
        assert 3 <= trace.probes < 100
        assert trace.standard_error < 0.2 * trace.mean


def test_is_deterministic_and_depends_on_the_seed() -> None:
    pass_ = EstimateHessianTrace(probes=4)
    assert estimate(pass_, context()) == estimate(pass_, context())
    assert estimate(pass_, context()) != estimate(pass_, context(seed=1))


def test_uses_the_first_samples_only() -> None:
    few = EstimateHessianTrace(probes=3, samples=13, batch=4)
    assert {t.samples for t in estimate(few, context())[0].values()} == {13}


def test_standard_error_of_the_mean() -> None:
    mean, error = mean_and_error([1.0, 2.0, 3.0, 4.0])
    assert mean == 2.5
    assert error == pytest.approx(np.std([1, 2, 3, 4], ddof=1) / 2)


@pytest.mark.parametrize("kind", ["classes", "values"])
def test_roots_have_the_covariance_of_the_output_hessian(kind: str) -> None:
    z = torch.tensor([[0.5, -1.0, 2.0]])
    loss = OutputLoss(kind, variance=0.7)
    hessian = torch.autograd.functional.hessian(lambda q: loss(q, z).sum(), z).reshape(3, 3)
    signs = torch.tensor([[a, b, c] for a in (-1.0, 1) for b in (-1.0, 1) for c in (-1.0, 1)])
    roots = loss.hessian_root(z.expand(8, 3), signs)
    assert torch.allclose(roots.T @ roots / 8, hessian, atol=1e-6)


@pytest.mark.parametrize(
    "pass_",
    [
        EstimateHessianTrace(method="newton"),
        EstimateHessianTrace(use_labels="maybe"),
        EstimateHessianTrace(use_labels="yes"),
        EstimateHessianTrace(probes=0),
    ],
)
def test_bad_options(pass_: EstimateHessianTrace) -> None:
    with pytest.raises(UsageError):
        pass_.run(residual_net(), context())


def test_no_samples() -> None:
    with pytest.raises(DataError, match="no samples"):
        EstimateHessianTrace().run(residual_net(), PassContext(TARGET, calibration=lambda: iter([])))


def test_weight_error_is_that_of_the_shipped_rounding() -> None:
    graph = MeasureWeightError().run(residual_net(), PassContext(TARGET)).graph
    for name, key in (("l1", "w1"), ("l2", "w2"), ("l3", "w3")):
        noted, w = graph.notes[WEIGHT_ERROR][name], DATA[key]
        assert noted.numel == w.size
        assert sorted(noted.squared) == list(TARGET.weight_bits)
        scales = weight_scales(w, 4)
        own = sum(
            (float(q) * s - float(v)) ** 2
            for row, s, qs in zip(w, scales, quantize_weights(w, 4, scales), strict=True)
            for v, q in zip(row, qs, strict=True)
        )
        assert noted.squared[4] == pytest.approx(own, rel=1e-6)
        assert noted.squared[2] > noted.squared[4] > noted.squared[8] > 0
    assert not nearest(np.zeros((2, 3), np.float32), 4).any()


def trace_of(mean: float, numel: int) -> Trace:
    return Trace(mean, 0.0, 3, 8, numel)


def test_predicted_loss_is_the_second_order_term_once_per_group() -> None:
    b = GraphBuilder("net", "float")
    x = b.input("x", TensorType((-1, WIDTH), "f32"))
    left = b.add("linear", [x], name="left", consts={"w": DATA["w1"]})
    right = b.add("linear", [x], name="right", consts={"w": DATA["w1"] * 2})
    b.output("y", left)
    b.output("z", right)
    target = Target("none", "", "", weight_bits=(4, 8), act_bits=(4, 8))
    error = {4: 0.25, 8: 0.01}
    notes = residual_net().notes
    notes = notes.with_table(RANGES, {"x": Range(-1, 1, {4: (-1, 1), 8: (-1, 1)}, error, 8)})
    notes = notes.with_table(WEIGHT_ERROR, {n: WeightError({4: 2.0, 8: 0.5}, 30) for n in ("left", "right")})
    notes = notes.with_table(WEIGHT_TRACE, {"left": trace_of(3.0, 30), "right": trace_of(0.0, 30)})
    notes = notes.with_table(ACTIVATION_TRACE, {"x": trace_of(10.0, WIDTH)})
    graph = EstimateTraceLoss().run(b.build().with_notes(notes), PassContext(target)).graph
    table = PredictLoss().run(graph, PassContext(target)).graph.notes[LOSS]
    assert set(table["left"].loss) == {(4, 4), (4, 8), (8, 4), (8, 8)}
    assert table["left"].loss[4, 8] == pytest.approx(0.5 * 3 * 2 + 0.5 * 10 * WIDTH * 0.01 / 2)
    both = table["left"].loss[8, 4] + table["right"].loss[8, 4]
    assert both == pytest.approx(0.5 * 3 * 0.5 + 0.5 * 10 * WIDTH * 0.25)


def test_predicted_loss_never_falls_toward_fewer_bits() -> None:
    assert monotone({2: 1.0, 3: 3.0, 4: 2.0, 8: -1.0}) == {2: 3, 3: 3, 4: 2, 8: 0}
