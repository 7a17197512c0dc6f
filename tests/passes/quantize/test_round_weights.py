"""GPTQ, bias correction and round-weights: against closed forms, dense equivalents and planted shifts."""

from __future__ import annotations

import numpy as np
import pytest

from passes.analysis.calibrate_ranges import CalibrateRanges
from passes.plan.uniform_bits import UniformBits
from passes.quantize.correct_bias import corrected_bias
from passes.quantize.gptq import best_scale, damped, descend, gptq, nearest, quadratic_error, round_layer
from passes.quantize.integerize import Integerize
from passes.quantize.round_weights import RoundWeights
from qcompile.errors import DataError, UsageError
from qcompile.exec.tensors import to_tensor
from qcompile.exec.torch_moments import SINGLE_FROM, Moments
from qcompile.ir import Array, Graph, GraphBuilder, TensorType
from qcompile.pm.base import PassContext, PassResult
from qcompile.pm.facts import BITS, RANGES, ROUNDED
from qcompile.pm.notes_json import notes_from_json, notes_to_json
from qcompile.target.model import Target

TARGET = Target("none", "", "")
TOP = 7


def correlated(rng: np.random.Generator, groups: int, size: int) -> np.ndarray:
    """Second moments of columns that share most of what they say."""
    mix = rng.normal(size=(groups, size, size)) + 3 * rng.normal(size=(groups, size, 1))
    return damped(mix @ mix.swapaxes(1, 2) / size)


@pytest.mark.parametrize("shape", [(1, 16, 24), (1, 4, 150), (12, 1, 9), (3, 5, 18)])
def test_gptq_beats_rounding_to_nearest(shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(1)
    w, h = rng.normal(size=shape), correlated(rng, shape[0], shape[2])
    scale = np.abs(w).max(axis=2) / TOP
    plain = quadratic_error(nearest(w, scale[..., None], TOP), scale, w, h)
    q = gptq(w, h, scale, TOP)
    assert q.min() >= -TOP - 1 and q.max() <= TOP and (q == np.rint(q)).all()
    assert quadratic_error(q, scale, w, h).sum() < 0.5 * plain.sum()


def test_gptq_is_rounding_to_nearest_where_columns_are_independent() -> None:
    rng = np.random.default_rng(2)
    w = rng.normal(size=(2, 6, 100))
    scale = np.abs(w).max(axis=2) / TOP * 0.8
    np.testing.assert_array_equal(gptq(w, np.stack([np.eye(100)] * 2), scale, TOP), nearest(w, scale[..., None], TOP))


def test_groups_are_layers_of_their_own() -> None:
    rng = np.random.default_rng(3)
    w, h = rng.normal(size=(5, 3, 9)), correlated(rng, 5, 9)
    q, scale = round_layer(w, h, 4, np.array([1.0, 0.8]), 3)
    for g in range(5):
        alone, own = round_layer(w[g : g + 1], h[g : g + 1], 4, np.array([1.0, 0.8]), 3)
        np.testing.assert_array_equal(alone[0], q[g])
        np.testing.assert_allclose(own[0], scale[g], rtol=1e-12)


def test_descent_and_scale_never_make_it_worse() -> None:
    rng = np.random.default_rng(4)
    w, h = rng.normal(size=(2, 8, 20)), correlated(rng, 2, 20)
    scale = np.abs(w).max(axis=2) / TOP
    start = gptq(w, h, scale, TOP)
    better = descend(start, scale, w, h, TOP, 5)
    errors = [quadratic_error(q, scale, w, h) for q in (start, better)]
    assert (errors[1] <= errors[0] + 1e-12).all() and errors[1].sum() < errors[0].sum()
    fitted = best_scale(better, scale, w, h)
    for factor in (0.98, 1.0, 1.02):
        best = quadratic_error(better, fitted, w, h)
        assert (best <= quadratic_error(better, fitted * factor, w, h) + 1e-12).all()


def conv_net(groups: int, w: Array) -> Graph:
    b = GraphBuilder("net", "float")
    x = b.input("x", TensorType((-1, w.shape[1] * groups, 7, 6), "f32"))
    attrs = {"groups": groups, "stride": (2, 1), "pad": (1, 0, 2, 1), "dilation": (1, 2)}
    b.output("y", b.add("conv2d", [x], name="c", consts={"w": w}, attrs=attrs))
    return b.build()


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_moments_are_those_of_the_columns(groups: int) -> None:
    """Planted: with the columns' moments, the sum and the second moment of every output follow from the weights."""
    from qcompile.exec import float_exec

    rng = np.random.default_rng(5)
    w = rng.normal(size=(8, 4 // groups, 3, 2)).astype(np.float32)
    graph = conv_net(groups, w)
    real, rounded = (rng.normal(size=(5, 4, 7, 6)).astype(np.float32) for _ in range(2))
    beside = rng.normal(size=(5, *graph.by_name["c"].type.sample)).astype(np.float32)
    moments = Moments(graph.by_name["c"], w, 10**6, np.random.default_rng(0))
    moments.add(to_tensor(real), to_tensor(rounded), to_tensor(beside))
    rows = w.reshape(groups, 8 // groups, -1)
    a, b = (float_exec.run(graph, {"x": x})["y"].astype(np.float64) for x in (real, rounded))
    assert moments.count == a[:, 0].size
    np.testing.assert_allclose((rows * moments.x[:, None]).sum(-1).ravel(), b.sum((0, 2, 3)), atol=1e-3)
    np.testing.assert_allclose((rows * moments.d[:, None]).sum(-1).ravel(), (a - b).sum((0, 2, 3)), atol=1e-3)
    np.testing.assert_allclose(((rows @ moments.xx) * rows).sum(-1).ravel(), np.square(b).sum((0, 2, 3)), rtol=1e-4)
    np.testing.assert_allclose(moments.e.ravel(), beside.sum((0, 2, 3)), atol=1e-3)
    np.testing.assert_allclose(
        (moments.fold_tx.sum(0) * rows).sum(-1).ravel(), ((a - b + beside) * b).sum((0, 2, 3)), rtol=1e-4, atol=1e-2
    )


@pytest.mark.parametrize(("columns", "precision"), [(600, np.float64), (SINGLE_FROM + 8, np.float32)])
def test_moments_of_many_columns_are_added_up_in_strips(columns: int, precision: type) -> None:
    rng = np.random.default_rng(12)
    x, w = rng.normal(size=(20, columns)).astype(np.float32), np.ones((2, columns), np.float32)
    b = GraphBuilder("net", "float")
    given = b.input("x", TensorType((-1, columns), "f32"))
    b.output("y", b.add("linear", [given], name="fc", consts={"w": w}))
    moments = Moments(b.build().by_name["fc"], w, 1, rng, folds=2)
    moments.add(to_tensor(x[:7]))
    moments.add(to_tensor(x[7:]))
    assert moments.fold_xx.dtype == precision
    np.testing.assert_array_equal(moments.xx[0], moments.xx[0].T)
    np.testing.assert_allclose(moments.xx[0], x.T @ x, atol=1e-4)


def test_bias_correction_removes_a_planted_shift() -> None:
    rng = np.random.default_rng(6)
    w = rng.normal(size=(2, 3, 5))
    rounded = w + rng.normal(size=w.shape) / 4
    x = rng.normal(size=(1000, 2, 5)) + 2
    real = x + 0.3 + rng.normal(size=x.shape) / 10
    bias, beside = rng.normal(size=6), rng.normal(size=(2, 3))
    fixed = corrected_bias(bias, w, rounded, x.mean(0), (real - x).mean(0), beside)
    wanted = np.einsum("grk,ngk->ngr", w, real).reshape(-1, 6).mean(0) + bias + beside.reshape(-1)
    found = np.einsum("grk,ngk->ngr", rounded, x).reshape(-1, 6).mean(0)
    np.testing.assert_allclose(found + fixed, wanted, atol=1e-9)
    assert np.abs(found + bias - wanted).max() > 0.5


def mobile_net() -> Graph:
    """conv → relu → depthwise → relu → pointwise (no bias) → mean → linear."""
    rng = np.random.default_rng(7)

    def const(*shape: int) -> Array:
        return rng.normal(size=shape).astype(np.float32)

    b = GraphBuilder("net", "float")
    x = b.input("x", TensorType((-1, 3, 8, 8), "f32"))
    same = {"pad": (1, 1, 1, 1)}
    h = b.add("conv2d", [x], name="stem", consts={"w": const(6, 3, 3, 3), "b": const(6)}, attrs=same)
    h = b.add("clip", [h], name="r1", attrs={"lo": 0.0})
    dw = {"w": const(6, 1, 3, 3), "b": const(6)}
    h = b.add("conv2d", [h], name="dw", consts=dw, attrs={"groups": 6, **same})
    h = b.add("clip", [h], name="r2", attrs={"lo": 0.0})
    h = b.add("conv2d", [h], name="pw", consts={"w": const(8, 6, 1, 1)}, attrs={})
    h = b.add("reduce_mean", [h], name="mean", attrs={"axes": (2, 3), "keepdims": 0})
    b.output("y", b.add("linear", [h], name="fc", consts={"w": const(4, 8), "b": const(4)}))
    return b.build()


def images(seed: int, n: int) -> Array:
    """Samples whose pixels and channels go together, as those of pictures do: (n, 3, 8, 8)."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(n, 1, 1, 1)) + rng.normal(size=(n, 1, 8, 1)) + rng.normal(size=(n, 1, 1, 8))
    return (shared + 0.3 * rng.normal(size=(n, 3, 8, 8))).astype(np.float32)


def rounded_net(w: int, **options: object) -> PassResult:
    x = images(8, 160)
    ctx = PassContext(TARGET, calibration=lambda: iter([{"x": x[:90]}, {"x": x[90:]}]))
    graph = CalibrateRanges().run(mobile_net(), ctx).graph
    graph = UniformBits(w, 8).run(graph, ctx).graph
    return RoundWeights(**options).run(graph, ctx)  # type: ignore[arg-type]


def test_the_pass_is_deterministic_and_keeps_to_the_grid() -> None:
    first, second = (rounded_net(3).graph.notes[ROUNDED] for _ in range(2))
    assert list(first) == ["stem", "dw", "pw", "fc"]
    for layer, found in first.items():
        assert found.q.dtype == np.int8 and found.q.min() >= -4 and found.q.max() <= 3 and (found.scale > 0).all()
        for field in ("q", "scale", "b"):
            np.testing.assert_array_equal(getattr(found, field), getattr(second[layer], field))


@pytest.mark.parametrize("method", ["adaround", "adaquant", "discquant"])
def test_other_methods_come_closer_than_nearest(method: str) -> None:
    found = outputs_error(rounded_net(4, method=method, epochs=2))
    assert found < 0.7 * outputs_error(rounded_net(4, method="nearest"))


def outputs_error(rounded: PassResult) -> float:
    """Mean squared distance of the integer network's outputs from the float network's, on fresh samples."""
    from qcompile.exec import float_exec
    from qcompile.semantics import interp
    from qcompile.semantics.grids import dequantize, quantize

    x = images(9, 64)
    integer = Integerize().run(rounded.graph, PassContext(TARGET)).graph
    out = interp.run(integer, {"x": quantize(x, integer.inputs[0].grid)})["y"]
    reference = float_exec.run(mobile_net(), {"x": x})["y"]
    return float(np.square(dequantize(out, integer.outputs[0].grid) - reference).mean())


def test_layers_of_five_bits_are_capped_for_a_target_with_winograd() -> None:
    """At a limit no filter of the stem keeps, with the refusal it then reports; other widths are left alone."""
    x = images(8, 100)
    graph = CalibrateRanges().run(mobile_net(), PassContext(TARGET, calibration=lambda: iter([{"x": x}]))).graph
    for bits, limit, key in ((5, 10, "not capped"), (5, 135, "capped"), (4, 10, "")):
        target = Target("none", "", "", winograd_inputs=63, winograd_weights=limit)
        ctx = PassContext(target, calibration=lambda: iter([{"x": x}]))
        facts = RoundWeights().run(UniformBits(bits, 6).run(graph, ctx).graph, ctx).report.facts
        assert facts["not capped"] == (["stem"] if key == "not capped" else [])
        assert facts["capped"] == []


def test_folds_are_parts_of_the_moments() -> None:
    """Samples are dealt in turn over batches of any size."""
    rng = np.random.default_rng(11)
    w = rng.normal(size=(8, 4, 3, 2)).astype(np.float32)
    node = conv_net(1, w).by_name["c"]
    x = rng.normal(size=(7, 4, 7, 6)).astype(np.float32)
    whole, dealt, even = (Moments(node, w, 10**6, np.random.default_rng(0), folds=n) for n in (1, 2, 1))
    whole.add(to_tensor(x))
    dealt.add(to_tensor(x[:3]))
    dealt.add(to_tensor(x[3:]))
    even.add(to_tensor(x[::2]))
    assert dealt.count == whole.count and dealt.counts[0] == even.count
    np.testing.assert_allclose(dealt.xx, whole.xx, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(dealt.fold_xx[0], even.xx, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(dealt.fold_x[0], even.x, rtol=1e-4, atol=1e-3)


def test_the_network_comes_closer() -> None:
    """Through the integer interpreter: outputs nearer to the float network's than with rounding to nearest."""
    errors = [outputs_error(rounded_net(4, method=method)) for method in ("nearest", "gptq")]
    assert errors[1] < 0.5 * errors[0], errors


def test_integerize_takes_the_very_integers() -> None:
    graph = rounded_net(4).graph
    integer = Integerize().run(graph, PassContext(TARGET)).graph
    for layer, found in graph.notes[ROUNDED].items():
        node = integer.by_name[f"{layer}:acc"]
        np.testing.assert_array_equal(integer.const(node, "w"), found.q)


def test_a_note_of_other_bits_is_not_used() -> None:
    graph = rounded_net(4).graph
    changed = graph.with_notes(graph.notes.with_table(BITS, {k: type(v)(5, v.a) for k, v in graph.notes[BITS].items()}))
    plain = changed.with_notes(changed.notes.with_table(ROUNDED, {}))
    ctx = PassContext(TARGET)
    assert Integerize().run(changed, ctx).graph.consts.keys() == Integerize().run(plain, ctx).graph.consts.keys()
    for name, array in Integerize().run(plain, ctx).graph.consts.items():
        np.testing.assert_array_equal(Integerize().run(changed, ctx).graph.consts[name], array)


def test_the_note_survives_json() -> None:
    notes = rounded_net(4).graph.notes
    back = notes_from_json(notes_to_json(notes, [ROUNDED]))
    for layer, found in notes[ROUNDED].items():
        np.testing.assert_array_equal(back[ROUNDED][layer].q, found.q)
        np.testing.assert_array_equal(back[ROUNDED][layer].scale, found.scale)


def test_errors() -> None:
    with pytest.raises(UsageError, match="unknown rounding 'best'"):
        rounded_net(4, method="best")
    graph = rounded_net(4).graph
    assert RANGES in graph.notes
    with pytest.raises(DataError, match="no samples"):
        RoundWeights().run(graph, PassContext(TARGET, calibration=lambda: iter([])))


def residual_net() -> Graph:
    """x → wide ⊕ (x → h → last): `last` can see and take back much of what rounding did to `wide`."""
    rng = np.random.default_rng(12)
    b = GraphBuilder("net", "float")
    x = b.input("x", TensorType((-1, 3, 8, 8), "f32"))
    coarse = {"w": 3 * rng.normal(size=(6, 3, 1, 1)).astype(np.float32)}
    wide = b.add("conv2d", [x], name="wide", consts=coarse, attrs={})
    h = b.add("conv2d", [x], name="h", consts={"w": rng.normal(size=(12, 3, 1, 1)).astype(np.float32)}, attrs={})
    last = {"w": rng.normal(size=(6, 12, 1, 1)).astype(np.float32)}
    b.output("y", b.add("add", [b.add("conv2d", [h], name="last", consts=last, attrs={}), wide], name="sum"))
    return b.build()


def residual_error(aware: bool, monkeypatch: pytest.MonkeyPatch) -> float:
    """Mean squared distance of the outputs on fresh samples, `wide` at 2 bits, the others at 8 and 7."""
    from qcompile.exec import float_exec
    from qcompile.pm.facts import BitChoice
    from qcompile.semantics import interp
    from qcompile.semantics.grids import dequantize, quantize

    if not aware:
        monkeypatch.setattr("passes.quantize.round_weights.added_to", lambda structure, layer: None)
    graph, ctx = residual_net(), PassContext(TARGET, calibration=lambda: iter([{"x": images(13, 64)}]))
    noted = CalibrateRanges(method="minmax").run(graph, ctx).graph
    bits = {"wide": BitChoice(2, 8), "h": BitChoice(8, 8), "last": BitChoice(7, 8)}
    noted = noted.with_notes(noted.notes.with_table(BITS, bits))
    integer = Integerize().run(RoundWeights().run(noted, ctx).graph, PassContext(TARGET)).graph
    x = 0.7 * images(14, 64)
    out = interp.run(integer, {"x": quantize(x, integer.inputs[0].grid)})["y"]
    return float(np.square(dequantize(out, integer.outputs[0].grid) - float_exec.run(graph, {"x": x})["y"]).mean())


def test_a_layer_makes_up_for_the_value_it_is_added_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: the identity branch is rounded coarsely, and the other branch sees the same inputs."""
    aware, plain = (residual_error(flag, monkeypatch) for flag in (True, False))
    assert aware < 0.5 * plain, (aware, plain)
