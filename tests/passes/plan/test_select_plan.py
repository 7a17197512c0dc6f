"""The simulator against hand-made rounding, select-plan, and how well predicted losses order plans."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from passes.analysis.calibrate_ranges import CalibrateRanges
from passes.analysis.estimate_hessian_trace import EstimateHessianTrace
from passes.analysis.estimate_trace_loss import EstimateTraceLoss
from passes.analysis.measure_weight_error import MeasureWeightError
from passes.analysis.predict_loss import PredictLoss
from passes.plan.select_plan import SelectPlan, choose
from passes.plan.simulate import Measurement, Simulator
from passes.structure import Structure
from qcompile.errors import DataError, PassContractError
from qcompile.exec import float_exec
from qcompile.ir import Array, Graph, GraphBuilder, TensorType
from qcompile.pm.base import PassContext
from qcompile.pm.facts import BITS, LOSS, RANGES, VALIDITY, BitChoice, Range, Validity
from qcompile.semantics.grids import activation_grid, fake_quantize, quantize_weights, weight_scales
from qcompile.target.model import Target

TARGET = Target("none", "", "")
PACK = Path(__file__).resolve().parents[4] / "shared" / "data"
RNG = np.random.default_rng(5)
X = RNG.normal(size=(96, 6)).astype(np.float32)
W = {n: RNG.normal(size=s).astype(np.float32) for n, s in {"l1": (8, 6), "l2": (8, 8), "l3": (5, 8)}.items()}
B = RNG.normal(size=8).astype(np.float32)
LAYERS = ("l1", "l2", "l3")


def residual_net() -> Graph:
    """x → l1 → relu (r1) → (l2 + r1) → relu (r2) → l3: r1 is read by a layer and an addition."""
    b = GraphBuilder("net", "float")
    x = b.input("x", TensorType((-1, 6), "f32"))
    h = b.add("clip", [b.add("linear", [x], name="l1", consts={"w": W["l1"], "b": B})], name="r1", attrs={"lo": 0.0})
    s = b.add("add", [b.add("linear", [h], name="l2", consts={"w": W["l2"]}), h], name="sum")
    s = b.add("clip", [s], name="r2", attrs={"lo": 0.0})
    b.output("y", b.add("linear", [s], name="l3", consts={"w": W["l3"]}))
    return b.build()


def plan(w: int, a: int, **changes: tuple[int, int]) -> dict[str, BitChoice]:
    return {layer: BitChoice(*changes.get(layer, (w, a))) for layer in LAYERS}


@pytest.fixture(scope="module")
def ranges() -> dict[str, Range]:
    ctx = PassContext(TARGET, calibration=lambda: iter([{"x": X}]))
    return dict(CalibrateRanges().run(residual_net(), ctx).graph.notes[RANGES])


def simulator(ranges: dict[str, Range], x: Array = X) -> Simulator:
    return Simulator(residual_net(), ranges, [{"x": part} for part in np.array_split(x, 4)])


def rounded(layer: str, bits: int) -> Array:
    scales = weight_scales(W[layer], bits)
    return np.asarray(quantize_weights(W[layer], bits, scales) * scales[:, None])


def by_hand(ranges: dict[str, Range], bits: dict[str, BitChoice]) -> Array:
    """The net with each rounding written out: r1 is stored at 8 bits, l2 reads a copy at its own."""

    def on(group: str, width: int, x: Array) -> Array:
        return fake_quantize(x, activation_grid(*ranges[group].clip[width], width)).astype(np.float64)

    q = {layer: rounded(layer, bits[layer].w) for layer in LAYERS}
    x = on("x", bits["l1"].a, X)
    r1 = on("r1", 8, np.maximum(x @ q["l1"].T + B, 0))
    read = r1 if bits["l2"].a == 8 else on("r1", bits["l2"].a, r1)
    r2 = on("r2", bits["l3"].a, np.maximum(read @ q["l2"].T + r1, 0))
    return np.asarray(r2 @ q["l3"].T)


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


class TestSimulator:
    @pytest.mark.parametrize("bits", [plan(8, 8), plan(4, 4), plan(3, 8, l2=(6, 5)), plan(8, 4, l3=(2, 6))])
    def test_rounds_what_integerize_rounds(self, ranges: dict[str, Range], bits: dict[str, BitChoice]) -> None:
        found = simulator(ranges).outputs(bits)["y"]
        expected = by_hand(ranges, bits)
        # Single elements may fall to the other side of a rounding boundary in float32.
        close = np.isclose(found, expected, rtol=1e-4, atol=1e-4).all(axis=1)
        assert close.mean() > 0.95

    def test_loss_is_the_divergence_of_the_softmax(self, ranges: dict[str, Range]) -> None:
        bits, sim = plan(4, 5), simulator(ranges)
        p = softmax(float_exec.run(residual_net(), {"x": X})["y"].astype(np.float64))
        z = sim.outputs(bits)["y"]
        q = softmax(z.astype(np.float64))
        found = sim.measure(bits)
        assert found.loss == pytest.approx((p * np.log(p / q)).sum(axis=1).mean(), rel=1e-4)
        assert found.agreement == pytest.approx((z.argmax(1) == p.argmax(1)).mean())
        assert found.loss == sim.loss(bits) > 0

    def test_fewer_bits_lose_more(self, ranges: dict[str, Range]) -> None:
        sim = simulator(ranges)
        losses = [sim.loss(plan(b, max(b, 4))) for b in (8, 6, 4, 3, 2)]
        assert losses == sorted(losses)
        assert losses[0] < 1e-3 < losses[-1]

    def test_needs_samples(self, ranges: dict[str, Range]) -> None:
        with pytest.raises(DataError, match="no samples"):
            Simulator(residual_net(), ranges, [])


class TestSelectPlan:
    def run(
        self, ranges: dict[str, Range], candidates: list[dict[str, BitChoice]], **data: object
    ) -> tuple[dict[str, BitChoice], list[float], int]:
        ctx = PassContext(TARGET, holdout=lambda: iter([{"x": X}]), data={"candidates": candidates, **data})
        graph = residual_net()
        result = SelectPlan().run(graph.with_notes(graph.notes.with_table(RANGES, ranges)), ctx)
        losses = [row["loss"] for row in result.report.facts["measured"]]
        return dict(result.graph.notes[BITS]), losses, result.report.facts["chosen"]

    def test_takes_the_smallest_measured_loss(self, ranges: dict[str, Range]) -> None:
        candidates = [plan(2, 8), plan(6, 8), plan(4, 4)]
        chosen, losses, index = self.run(ranges, candidates)
        assert chosen == candidates[1]
        assert index == 1
        assert losses[1] == min(losses)
        assert losses == pytest.approx([simulator(ranges).loss(c) for c in candidates], rel=1e-5)

    def test_the_cheaper_of_equals(self, ranges: dict[str, Range]) -> None:
        _, losses, index = self.run(ranges, [plan(2, 4), plan(8, 8), plan(8, 8)])
        assert losses[1] == losses[2]
        assert index == 1

    def test_the_pass_knows_which_plans_are_uniform(self, ranges: dict[str, Range]) -> None:
        """6 and 7 bits in one of three layers differ by less than chance; 2 bits do not."""
        near, plain, coarse = plan(6, 8, l2=(7, 8)), plan(6, 8), plan(2, 8)
        losses = [simulator(ranges).loss(candidate) for candidate in (near, plain)]
        better = int(np.argmin(losses))
        assert self.run(ranges, [near, plain])[2] == better
        assert self.run(ranges, [near, coarse], uniform=[coarse])[2] == 0

    def test_doubt_decides_for_the_uniform_plan(self) -> None:
        """Planted losses of 100 samples: the other plan is better in the mean by what two samples say."""
        plain = np.full(100, 0.01)
        few, all_ = plain.copy(), 0.8 * plain
        plain[:2], few[:2] = 0.5, 0.1
        few[2:] *= 1.05
        measured = [Measurement(float(each.mean()), 1.0, each) for each in (few, all_, plain)]
        assert measured[0].loss < measured[2].loss
        assert choose([measured[0], measured[2]], holders=[1]) == 1
        assert choose([measured[0], measured[2]], holders=[]) == 0
        assert choose([measured[1], measured[2]], holders=[1]) == 0
        assert choose([measured[1], measured[1]], holders=[1]) == 0  # of equals the cheaper

    def test_few_losing_samples_do_not_hide_what_all_the_others_say(self) -> None:
        """A network that is sure of its answers: nine tenths of the loss lie in two samples, whatever the plan."""
        rng = np.random.default_rng(3)
        plain = 1e-5 * rng.uniform(0.5, 1.5, 128)
        better = plain * rng.uniform(0.2, 0.9, 128)
        plain[:2], better[:2] = (0.5, 0.1), (0.3, 0.2)
        measured = [Measurement(float(each.mean()), 1.0, each) for each in (better, plain)]
        roots = np.sqrt(plain) - np.sqrt(better)
        assert roots.mean() < 1.645 * roots.std(ddof=1) / 128**0.5  # neither their mean nor that of roots is sure
        assert choose(measured, holders=[1]) == 0
        assert choose([measured[1], measured[0]], holders=[1]) == 1  # a uniform plan that loses least is best

    def test_a_sure_prediction_decides_where_few_samples_cannot(self) -> None:
        """The plan that is better in the mean wins with a prediction 0.72 times as large, not with more."""
        plain = np.full(128, 0.01)
        few = np.where(np.arange(128) < 2, 0.001, 0.01005)
        measured = [Measurement(float(each.mean()), 1.0, each) for each in (few, plain)]
        assert measured[0].loss < measured[1].loss
        assert choose(measured, [1]) == choose(measured, [1], [0.73, 1.0]) == 1
        assert choose(measured, [1], [0.72, 1.0]) == 0
        worse = [measured[1], measured[0]]
        assert choose(worse, [1], [0.1, 1.0]) == 1  # a prediction alone is not enough

    @pytest.mark.parametrize(("rho", "expected"), [(0.51, 0), (0.49, 1), (None, 1)])
    def test_predictions_have_a_say_where_they_order_random_plans(
        self, ranges: dict[str, Range], rho: float | None, expected: int
    ) -> None:
        """6 and 7 bits in one of three layers: equal by these samples; a wild prediction says otherwise."""
        near, plain = plan(6, 8, l2=(7, 8)), plan(6, 8)
        if simulator(ranges).loss(near) > simulator(ranges).loss(plain):
            near, plain = plain, near
        notes = residual_net().with_notes(residual_net().notes.with_table(RANGES, ranges)).notes
        if rho is not None:
            notes = notes.with_table(VALIDITY, {"": Validity(24, 64, 0.0, 0.0, rho, 0.9, 0.01)})
        data = {"candidates": [near, plain], "uniform": [plain], "predicted": [0.1, 1.0]}
        ctx = PassContext(TARGET, holdout=lambda: iter([{"x": X[:8]}]), data=data)
        found = SelectPlan().run(residual_net().with_notes(notes), ctx).report.facts
        assert found["measured"][0]["loss"] < found["measured"][1]["loss"]
        assert found["chosen"] == expected

    def test_needs_whole_candidates(self, ranges: dict[str, Range]) -> None:
        with pytest.raises(PassContractError, match="candidate plans"):
            self.run(ranges, [])
        with pytest.raises(PassContractError, match="l3"):
            self.run(ranges, [{"l1": BitChoice(8, 8), "l2": BitChoice(8, 8)}])


def spearman(a: list[float], b: list[float]) -> float:
    ranks = [np.argsort(np.argsort(v)).astype(float) for v in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def random_plans(structure: Structure, count: int, seed: int) -> list[dict[str, BitChoice]]:
    """Plans around different mean widths; tied layers share their activation bits."""
    rng, plans = np.random.default_rng(seed), []
    for _ in range(count):
        w_bits, a_bits = [3, 4, 5, 6, 8], [4, 5, 6, 8]
        w_share, a_share = rng.dirichlet(np.ones(5)), rng.dirichlet(np.ones(4))
        acts = {group: int(rng.choice(a_bits, p=a_share)) for group in structure.tied()}
        plans.append({
            layer: BitChoice(int(rng.choice(w_bits, p=w_share)), acts[structure.layer_group(layer)])
            for layer in structure.layers
        })  # fmt: skip
    return plans


@pytest.mark.skipif(not PACK.is_dir(), reason="the data pack is not beside the repository")
def test_predicted_loss_orders_plans_of_resnet20(monkeypatch: pytest.MonkeyPatch) -> None:
    from qcompile.capture import capture

    monkeypatch.syspath_prepend(str(PACK))
    monkeypatch.delitem(sys.modules, "load", raising=False)
    import load

    graph = capture(PACK / "models" / "resnet20_cifar10.onnx")
    x = load.arrays("resnet20_cifar10", "calib", 128, PACK)["input"]
    unseen = load.arrays("resnet20_cifar10", "dev_lossless", 192, PACK)["input"]
    ctx = PassContext(TARGET, calibration=lambda: ({"input": x[i : i + 32]} for i in range(0, 128, 32)))
    for pass_ in (CalibrateRanges(), MeasureWeightError(), EstimateHessianTrace(), EstimateTraceLoss(), PredictLoss()):
        graph = pass_.run(graph, ctx).graph
    simulator = Simulator(graph, graph.notes[RANGES], [{"input": unseen}])
    plans = random_plans(simulator.structure, 30, seed=0)
    table = graph.notes[LOSS]
    predicted = [sum(table[layer].loss[b.w, b.a] for layer, b in bits.items()) for bits in plans]
    measured = [simulator.loss(bits) for bits in plans]
    assert spearman(predicted, measured) > 0.8
