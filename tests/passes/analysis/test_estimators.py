"""Every estimator against what it should find: explicit gradients, measured plans, planted problems; and kills."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from estimator_nets import DATA, TARGET, N, calibrated, context, stream

from passes.analysis import subjects
from passes.analysis.calibrate_ranges import CalibrateRanges
from passes.analysis.check_prediction import CheckPrediction
from passes.analysis.correlation import spearman
from passes.analysis.effort import macs
from passes.analysis.estimate_fisher_gram import EstimateFisherGram
from passes.analysis.estimate_fisher_loss import EstimateFisherLoss
from passes.analysis.estimate_hessian_trace import EstimateHessianTrace
from passes.analysis.estimate_hvp_rows import EstimateHvpRows
from passes.analysis.estimate_output_fisher import EstimateOutputFisher
from passes.analysis.estimate_top_eigenvalue import EstimateTopEigenvalue
from passes.analysis.measure_output_gram import MeasureOutputGram, combined
from passes.analysis.measure_output_noise import MeasureOutputNoise
from passes.analysis.measure_pair_loss import MeasurePairLoss, chosen_pairs, closest_first
from passes.analysis.measure_single_loss import MeasureSingleLoss
from passes.analysis.perturbations import Perturbations
from passes.analysis.predict_loss import PredictLoss, monotone
from passes.analysis.predicted_loss import PredictedLoss
from passes.analysis.subjects import Choice, Rounder, choices_of
from passes.analysis.sweep import Swept
from passes.quantize.round_candidates import RoundCandidates, round_at_widths
from passes.structure import Structure
from qcompile.errors import UsageError
from qcompile.exec.torch_exec import TorchGraph
from qcompile.exec.torch_loss import output_losses, total_loss
from qcompile.exec.torch_variants import VariantRunner
from qcompile.ir import Graph, GraphBuilder, TensorType
from qcompile.pm.base import Pass, PassContext
from qcompile.pm.facts import (
    CANDIDATES,
    INTERACTIONS,
    LOSS,
    RANGES,
    SENSITIVITY,
    TOP_EIGENVALUE,
    VALIDITY,
    BitChoice,
    Interactions,
)
from qcompile.pm.notes_json import notes_to_json
from qcompile.semantics.grids import weight_range

ESTIMATORS: tuple[Pass, ...] = (
    MeasureSingleLoss(samples=12, batch=4),
    MeasureOutputNoise(samples=12, batch=4),
    MeasureOutputGram(samples=12, batch=4),
    MeasurePairLoss(samples=12, batch=4, pairs=60),
    EstimateFisherGram(samples=12, batch=4),
    EstimateHvpRows(samples=12, batch=4),
    EstimateFisherLoss(samples=12),
    EstimateFisherLoss(samples=12, kind="empirical"),
    EstimateOutputFisher(samples=12, batch=4),
)


def rounded() -> Graph:
    return RoundCandidates().run(calibrated(), context()).graph


def interactions_of(graph: Graph) -> Interactions:
    return graph.notes[INTERACTIONS][""]


class KilledError(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("pass_", ESTIMATORS, ids=lambda p: p.spec())
def test_every_estimator_prices_every_choice(pass_: Pass) -> None:
    graph = pass_.run(rounded(), context()).graph
    found = graph.notes[SENSITIVITY]
    assert set(found) == {"w:c1", "w:c2", "w:fc", "a:x", "a:r1", "a:mean"}
    for subject, sensitivity in found.items():
        widths = TARGET.weight_bits if subject[0] == "w" else TARGET.act_bits
        assert set(sensitivity.loss) == set(sensitivity.standard_error) == set(widths)
        assert sensitivity.loss[min(widths)] > 4 * sensitivity.loss[8] >= 0
        assert sensitivity.method == pass_.name


@pytest.mark.parametrize("pass_", [*ESTIMATORS, CheckPrediction(plans=6, samples=10, batch=5)], ids=lambda p: p.spec())
def test_a_killed_run_resumes_with_the_same_bytes(pass_: Pass, tmp_path: Path) -> None:
    graph = rounded()
    if isinstance(pass_, CheckPrediction):
        graph = PredictLoss().run(MeasureSingleLoss(samples=8).run(graph, context()).graph, context()).graph
    whole = notes_to_json(pass_.run(graph, context()).graph.notes, pass_.provides)
    ran = []

    def kill(task: str, done: int, total: int) -> None:
        ran.append(done)
        if len(ran) == 3:
            raise KilledError

    with pytest.raises(KilledError):
        pass_.run(graph, context(tmp_path, progress=kill))
    steps: list[int] = []
    resumed = context(tmp_path, progress=lambda task, done, total: steps.append(done))
    assert notes_to_json(pass_.run(graph, resumed).graph.notes, pass_.provides) == whole
    assert steps
    again: list[int] = []
    third = context(tmp_path, progress=lambda task, done, total: again.append(done))
    assert notes_to_json(pass_.run(graph, third).graph.notes, pass_.provides) == whole
    assert again == []  # all is kept, nothing runs


def test_a_resumed_run_starts_where_the_killed_one_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, pass_ = rounded(), MeasureSingleLoss(samples=12, batch=4)

    def kill(task: str, done: int, total: int) -> None:
        if done == 2:
            raise KilledError

    with pytest.raises(KilledError):
        pass_.run(graph, context(tmp_path, progress=kill))
    runs = []
    run = VariantRunner.run
    monkeypatch.setattr(VariantRunner, "run", lambda self, x: runs.append(len(x["x"])) or run(self, x))
    pass_.run(graph, context(tmp_path))
    assert runs == [4, 1]  # the last two of four batches were left


def test_what_is_kept_belongs_to_one_rounding_and_one_seed(tmp_path: Path) -> None:
    pass_ = EstimateFisherGram(samples=8, batch=4)
    graph = rounded()
    first = interactions_of(pass_.run(graph, context(tmp_path)).graph).matrix
    other = interactions_of(pass_.run(graph, context(tmp_path, seed=1)).graph).matrix
    assert not np.array_equal(first, other)
    nearest = interactions_of(pass_.run(calibrated(), context(tmp_path)).graph).matrix
    assert not np.array_equal(first, nearest)
    assert np.array_equal(first, interactions_of(pass_.run(graph, context(tmp_path)).graph).matrix)


def test_variants_equal_runs_of_their_own() -> None:
    graph = rounded()
    rounder = Rounder(graph)
    choices = choices_of(rounder.structure, TARGET.weight_bits, TARGET.act_bits)
    sets = [[c] for c in choices] + [[choices[0], choices[-1]], [choices[3], choices[4 - 2], choices[9]]]
    variants = [rounder.variant(part) for part in sets]
    runner = VariantRunner(rounder.graph, variants, rows=12)
    runs = runner.run({"x": DATA[:4]})
    numbers, reference = next(runs)
    assert list(numbers) == []
    model = TorchGraph(rounder.graph)
    torch.testing.assert_close(reference["y"], model.run({"x": DATA[:4]})["y"])
    seen = []
    from qcompile.exec.tensors import fake_quantize

    for numbers, outputs in runs:
        for number, found in zip(numbers, outputs["y"], strict=True):
            seen.append(number)
            variant = variants[number]
            own = model.run(
                {"x": DATA[:4]},
                quantize=lambda v, x, g=variant.grids: fake_quantize(x, g[v]) if v in g else x,
                weights={k: c["w"] for k, c in variant.consts.items()},
                biases={k: c["b"] for k, c in variant.consts.items()},
            )
            torch.testing.assert_close(found, own["y"], rtol=1e-5, atol=1e-6)
    assert sorted(seen) == list(range(len(sets)))


def test_stacks_of_large_values_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = rounded()
    rounder = Rounder(graph)
    variants = [rounder.variant([Choice("w:c1", bits)]) for bits in TARGET.weight_bits]
    # The largest value behind c1 has 4·6·6 numbers.
    monkeypatch.setattr("qcompile.exec.torch_exec._HEAP_BYTES", 4 * 4 * 144 * 2)
    stacks = [list(numbers) for numbers, _ in VariantRunner(rounder.graph, variants).run({"x": DATA[:4]})]
    assert stacks == [[], [0, 1], [2]]


def test_single_losses_are_those_of_the_simulated_change() -> None:
    graph = MeasureSingleLoss(samples=N, batch=6).run(rounded(), context()).graph
    rounder = Rounder(graph)
    consts = rounder.weights("c2", 3)
    model = TorchGraph(graph)
    real = model.run({"x": DATA})
    changed = model.run({"x": DATA}, weights={"c2": consts["w"]}, biases={"c2": consts["b"]})
    each = total_loss(output_losses(graph), changed, real).numpy()
    found = graph.notes[SENSITIVITY]["w:c2"]
    assert found.loss[3] == pytest.approx(each.mean(), rel=1e-4)
    assert found.standard_error[3] == pytest.approx(each.std(ddof=1) / N**0.5, rel=1e-3)


def test_fisher_gram_equals_explicit_gradients_of_every_sample() -> None:
    """Rows of A from per-sample gradients of weights, in place of output gradients; and Ω is PSD."""
    graph = rounded()
    perturbations = Perturbations(graph)
    from qcompile.exec.torch_taps import Taps, inner

    taps = Taps(perturbations.runner, perturbations.places, output_losses(graph))
    taps.restart(7)
    for sample in range(3):
        x = {"x": DATA[sample : sample + 1]}
        values, (gradient,) = taps.gradients(x, 1)
        choice = Choice("w:c2", 3)
        ((place, change),) = perturbations.of(choice, values)
        found = float(inner(gradient[place], change))
        w = perturbations.runner.weights["c2"].clone().requires_grad_()
        z = perturbations.runner.run(x, weights={"c2": w}, keep=["c2"])
        (own,) = torch.autograd.grad(z["c2"], w, gradient["c2"])
        constants = perturbations.constants(choice)
        explicit = float((own * constants["w"]).sum())
        explicit += float((gradient["c2"].sum(dim=(0, 2, 3)) * constants["b"]).sum())
        assert found == pytest.approx(explicit, rel=1e-4, abs=1e-7)


def test_the_gram_is_the_hessian_in_the_mean() -> None:
    """Sampled gradients against exact products with the Hessian, both against a finite difference of the loss."""
    graph = rounded()
    exact = EstimateHvpRows(samples=N, batch=5).run(graph, context()).graph
    sampled = EstimateFisherGram(samples=N, draws=150, batch=5).run(graph, context()).graph
    a, b = interactions_of(exact).matrix, interactions_of(sampled).matrix
    assert np.linalg.norm(a - b) < 0.15 * np.linalg.norm(a)
    for subject, own in exact.notes[SENSITIVITY].items():
        for bits, loss in own.loss.items():
            assert sampled.notes[SENSITIVITY][subject].loss[bits] == pytest.approx(loss, rel=0.3)
    assert np.array_equal(a, a.T)
    # ε small enough for the second order: L(ε δ) = ½ ε² δᵀHδ.
    perturbations = Perturbations(graph)
    eps, model = 0.02, perturbations.runner
    consts = perturbations.constants(Choice("w:c1", 4))
    node = graph.by_name["c1"]
    moved = {"c1": torch.tensor(graph.const(node, "w")) + eps * consts["w"]}
    bias = {"c1": torch.tensor(graph.const(node, "b")) + eps * consts["b"]}
    losses, real = output_losses(graph), model.run({"x": DATA})
    found = float(total_loss(losses, model.run({"x": DATA}, weights=moved, biases=bias), real).mean()) / eps**2
    assert exact.notes[SENSITIVITY]["w:c1"].loss[4] == pytest.approx(found, rel=0.05)


@pytest.mark.parametrize("pass_", [EstimateFisherGram(samples=N), MeasureOutputGram(samples=N, strength=1.0)])
def test_grams_are_positive_semi_definite(pass_: Pass, monkeypatch: pytest.MonkeyPatch) -> None:
    grams = []
    inner = subjects.interactions
    monkeypatch.setattr(subjects, "interactions", lambda c, m, name: grams.append(m) or inner(c, m, name))
    graph = pass_.run(rounded(), context()).graph
    values = np.linalg.eigvalsh(grams[0])
    assert values.min() > -1e-9 * values.max()
    between = interactions_of(graph)
    same = np.array(between.subjects)[:, None] == np.array(between.subjects)[None]
    assert not between.matrix[same].any()


def planted() -> Graph:
    """One output whose loss is exactly quadratic in independent parts: y = Σ of linear layers of parts of the input."""
    rng = np.random.default_rng(1)
    b = GraphBuilder("planted", "float")
    values = []
    for i in range(3):
        x = b.input(f"x{i}", TensorType((-1, 4), "f32"))
        values.append(b.add("linear", [x], name=f"l{i}", consts={"w": rng.normal(size=(1, 4)).astype(np.float32)}))
    b.output("y", b.add("add", [b.add("add", values[:2], name="s"), values[2]], name="t"))
    return b.build()


def test_measured_pairs_recover_a_quadratic_loss() -> None:
    """y is linear in every layer's weights, so L is quadratic in weight choices: pairs are exact for all plans."""
    data = {f"x{i}": np.random.default_rng(i).normal(size=(16, 4)).astype(np.float32) for i in range(3)}

    def samples():  # type: ignore[no-untyped-def]
        yield data

    from passes.analysis.calibrate_ranges import CalibrateRanges

    ctx = PassContext(replace(TARGET, act_bits=(8,)), calibration=samples)
    graph = CalibrateRanges().run(planted(), ctx).graph
    graph = MeasurePairLoss(pairs=0, samples=16).run(graph, ctx).graph
    gram = MeasureOutputGram(samples=16, strength=1.0).run(graph, ctx).graph
    found, table = interactions_of(graph), graph.notes[SENSITIVITY]
    row = {key: i for i, key in enumerate(zip(found.subjects, found.bits, strict=True))}
    rounder = Rounder(graph)
    model = TorchGraph(graph)
    losses = output_losses(graph)
    real = model.run(data)
    losses = {"y": replace(losses["y"], variance=float(real["y"].double().var(unbiased=False)))}
    for bits in ((3, 4, 8), (4, 4, 3), (3, 3, 3)):
        weights = {f"l{i}": rounder.weights(f"l{i}", w)["w"] for i, w in enumerate(bits)}
        measured = float(total_loss(losses, model.run(data, weights=weights), real).mean())
        rows = [row[f"w:l{i}", w] for i, w in enumerate(bits)]
        alone = sum(table[f"w:l{i}"].loss[w] for i, w in enumerate(bits))
        part = found.matrix[np.ix_(rows, rows)]
        assert alone + np.triu(part, 1).sum() == pytest.approx(measured, rel=1e-3)
        other = interactions_of(gram).matrix[np.ix_(rows, rows)]
        np.testing.assert_allclose(other, part, rtol=2e-2, atol=1e-3 * measured)


def test_pairs_go_to_neighbours_first() -> None:
    structure = Structure(calibrated())
    choices = choices_of(structure, (4, 8), (8,))
    order = list(closest_first(structure, ["w:c1", "w:c2", "w:fc", "a:x", "a:r1", "a:mean"]))
    assert set(order[:5]) == {
        ("w:c1", "a:x"), ("w:c1", "a:r1"), ("w:c2", "a:r1"), ("w:c2", "a:mean"), ("w:fc", "a:mean")
    }  # fmt: skip
    assert len(order) == 15
    within = chosen_pairs(structure, choices, 5)
    assert len(within) == 4  # two whole pairs of subjects; a third would exceed the budget
    assert len(chosen_pairs(structure, choices, 0)) == sum(
        1 for i in range(9) for j in range(i) if choices[i].subject != choices[j].subject
    )


def test_top_eigenvalue_is_that_of_the_explicit_hessian() -> None:
    graph = calibrated()
    found = EstimateTopEigenvalue(samples=N, iterations=300, tolerance=1e-7).run(graph, context()).graph
    model = TorchGraph(graph)
    real = model.run({"x": DATA})

    def loss(w: torch.Tensor) -> torch.Tensor:
        return total_loss(output_losses(graph), model.run({"x": DATA}, weights={"fc": w}), real).mean()

    hessian = torch.autograd.functional.hessian(loss, model.weights["fc"]).reshape(12, 12)
    exact = float(torch.linalg.eigvalsh(hessian.double()).max())
    assert found.notes[TOP_EIGENVALUE]["fc"].value == pytest.approx(exact, rel=1e-3)


def test_fisher_kinds() -> None:
    with pytest.raises(UsageError, match="kind"):
        EstimateFisherLoss(kind="half").run(calibrated(), context())
    with pytest.raises(UsageError, match="labels"):
        EstimateFisherLoss(kind="empirical").run(calibrated(), PassContext(TARGET, calibration=stream))


def test_trace_resumes_with_the_same_bytes(tmp_path: Path) -> None:
    graph, pass_ = calibrated(), EstimateHessianTrace(probes=4, tolerance=0.0, samples=12)
    whole = notes_to_json(pass_.run(graph, context()).graph.notes, pass_.provides)

    def kill(task: str, done: int, total: int) -> None:
        if done == 2:
            raise KilledError

    with pytest.raises(KilledError):
        pass_.run(graph, context(tmp_path, progress=kill))
    steps: list[int] = []
    resumed = context(tmp_path, progress=lambda task, done, total: steps.append(done))
    assert notes_to_json(pass_.run(graph, resumed).graph.notes, pass_.provides) == whole
    assert steps == [2, 3]


def test_candidates_resume_and_are_no_worse_than_nearest(tmp_path: Path) -> None:
    graph = calibrated()
    whole = RoundCandidates().run(graph, context()).graph.notes[CANDIDATES]

    def kill(task: str, done: int, total: int) -> None:
        if done == 1:
            raise KilledError

    with pytest.raises(KilledError):
        RoundCandidates().run(graph, context(tmp_path, progress=kill))
    result = RoundCandidates().run(graph, context(tmp_path))
    assert result.report.facts["kept"] == 1
    for layer, candidates in result.graph.notes[CANDIDATES].items():
        for bits, own in candidates.by_bits.items():
            other = whole[layer].by_bits[bits]
            assert np.array_equal(own.q, other.q)
            assert np.array_equal(own.scale, other.scale)
            assert np.array_equal(own.b, other.b)
            lo, hi = weight_range(bits)
            assert lo <= own.q.min() and own.q.max() <= hi
    single = MeasureSingleLoss(samples=N)
    gptq = single.run(result.graph, context()).graph.notes[SENSITIVITY]
    nearest = single.run(graph, context()).graph.notes[SENSITIVITY]
    sums = [sum(table[f"w:{k}"].loss[3] for k in ("c1", "c2", "fc")) for table in (gptq, nearest)]
    assert sums[0] < sums[1]


def test_widths_are_rounded_as_if_alone() -> None:
    rng = np.random.default_rng(0)
    w, x = rng.normal(size=(2, 3, 5)), rng.normal(size=(2, 40, 5))
    h = x.swapaxes(1, 2) @ x
    together = round_at_widths(w, h, (2, 4, 6), 2)
    for bits in (2, 4, 6):
        q, scale = round_at_widths(w, h, (bits,), 2)[bits]
        assert np.array_equal(q, together[bits][0])
        assert np.array_equal(scale, together[bits][1])


def test_exact_measurements_outweigh_the_quadratic_form() -> None:
    ones = np.ones(3)
    swept = Swept(9, np.array([1.0, 2.0, 4.0]), 0 * ones, ones, ones, np.array([1.0, 1.0, 1.0]), 0 * ones, np.eye(3))
    np.testing.assert_allclose(combined(swept)[0], [1, 2, 4])
    noisy = replace(swept, loss_error=np.array([1.0, 2.0, 4.0]))
    loss, _ = combined(noisy)
    assert np.ptp(loss) < 0.15  # the quadratic form says all three are equal, and its unit is the median ratio
    assert loss[1] == pytest.approx(2.0)


def test_large_networks_are_run_on_fewer_samples() -> None:
    graph = rounded()
    # c1: 4·6·6 outputs of 18 products, c2: of 36, fc: 3 of 4; 15 choices.
    assert macs(graph) == 144 * 18 + 144 * 36 + 3 * 4
    one = 0.5 * macs(graph) * 15 / 1e12
    report = MeasureOutputGram(samples=18, teramacs=one * 18.01).run(graph, context()).report
    assert report.facts == {"samples": 18, "choices": 15, "measured": 15}
    report = MeasureOutputGram(samples=N, teramacs=one * 18.01, fine=N).run(graph, context()).report
    assert report.facts == {"samples": 18, "choices": 15, "measured": 15}, "these widths have nothing between them"
    assert MeasureOutputGram(samples=N, teramacs=1e-12).run(graph, context()).report.facts["samples"] == 8
    found = CheckPrediction(plans=12, samples=N, teramacs=12.01 * macs(graph) * 9 / 1e12)
    graph = PredictLoss().run(MeasureOutputGram(samples=N).run(graph, context()).graph, context()).graph
    assert found.run(graph, context()).graph.notes[VALIDITY][""].samples == 9


def test_large_networks_are_measured_at_every_second_width() -> None:
    ctx = replace(context(), target=replace(TARGET, weight_bits=(3, 4, 5, 8), act_bits=(4, 5, 6, 8)))
    graph = RoundCandidates().run(calibrated(), ctx).graph
    graph = CalibrateRanges().run(graph, ctx).graph
    pass_ = MeasureOutputGram(samples=N, fine=N)
    full = pass_.run(graph, ctx)
    assert full.report.facts["measured"] == 3 * 4 + 3 * 4
    pass_ = replace(pass_, teramacs=0.5 * macs(graph) * 24 * (N - 0.5) / 1e12)
    enough = replace(pass_, fine=N - 1).run(graph, ctx).report.facts
    assert enough == {"samples": N - 1, "choices": 24, "measured": 24}
    thin = pass_.run(graph, ctx)
    assert thin.report.facts == {"samples": N, "choices": 24, "measured": 3 * 3 + 3 * 3}
    whole, found = full.graph.notes[SENSITIVITY], thin.graph.notes[SENSITIVITY]
    for subject, own in found.items():
        assert set(own.loss) == set(whole[subject].loss)
        middle = 4 if subject[0] == "w" else 5
        # The unit of the quadratic form is a median over the choices that were measured.
        assert own.loss[middle - 1] == pytest.approx(whole[subject].loss[middle - 1], rel=0.3)
        assert own.loss[middle] == pytest.approx((own.loss[middle - 1] * own.loss[middle + 1]) ** 0.5)
    wide, narrow = (interactions_of(result.graph) for result in (full, thin))
    assert (wide.subjects, wide.bits) == (narrow.subjects, narrow.bits)
    i, j = ((wide.subjects.index(s), wide.bits[wide.subjects.index(s)]) for s in ("w:c1", "w:c2"))
    assert np.sign(narrow.matrix[i[0], j[0]]) == np.sign(wide.matrix[i[0], j[0]])
    assert np.isfinite(narrow.matrix).all()


def test_validity_of_predictions(tmp_path: Path) -> None:
    graph = MeasureOutputGram(samples=N).run(rounded(), context()).graph
    graph = PredictLoss().run(graph, context()).graph
    result = CheckPrediction(plans=12, samples=N).run(graph, context())
    found = result.graph.notes[VALIDITY][""]
    assert (found.plans, found.samples) == (12, N)
    assert found.additive_spearman > 0.3
    assert found.augmented_spearman is not None
    assert result.report.facts["plans"] == 12
    predicted = PredictedLoss(graph)
    plan = {k: BitChoice(3, 4) for k in ("c1", "c2", "fc")}
    own = {subject: monotone(found.loss) for subject, found in graph.notes[SENSITIVITY].items()}
    alone = sum(own[f"w:{k}"][3] for k in plan) + sum(own[f"a:{g}"][4] for g in ("x", "r1", "mean"))
    assert predicted.additive(plan) == pytest.approx(alone)
    between = interactions_of(graph)
    rows = [i for i, b in enumerate(between.bits) if b == (3 if between.subjects[i][0] == "w" else 4)]
    pairs = between.matrix[np.ix_(rows, rows)].sum() / 2
    assert predicted.augmented(plan) == pytest.approx(alone + pairs)
    assert LOSS in graph.notes and RANGES in graph.notes


def test_spearman_of_ties_and_constants() -> None:
    assert spearman([1, 2, 3], [10, 20, 15]) == pytest.approx(0.5)
    assert spearman([1, 1, 2, 3], [1, 1, 2, 3]) == pytest.approx(1.0)
    assert spearman([1, 1, 2], [5, 5, 5]) == 0.0
