"""Each canonical pass: what it rewrites, what it leaves alone, and that the function stays."""

import math
from typing import Any

import numpy as np
import pytest

from qcompile.errors import UnsupportedOpError
from tests.passes.canonicalize.nets import Net, apply, array, lines

W = array(6, 4, 3, 3)
ROW = array(3, 4)


def one(value: float) -> np.ndarray[Any, Any]:
    return np.full((1, 1, 1), value, np.float32)


def norm(channels: int) -> dict[str, Any]:
    return {
        "scale": array(channels, seed=1),
        "bias": array(channels, seed=2),
        "mean": array(channels, seed=3),
        "var": array(channels, seed=4, low=0.5),
    }


def test_fold_constants_merges_affines() -> None:
    net = Net().affine("a", "x", scale=array(4, 1, 1), shift=array(4, 1, 1))
    net.affine("b", "a", scale=array(1, 1, 8), shift=one(0)).affine("c", "b", scale=one(1), shift=one(0))
    graph, _ = apply("fold-constants", net.out(y="c"))
    assert lines(graph) == ["%b = affine(%x, scale=@b.scale, shift=@b.shift)", "out y = %b"]


def test_fold_constants_leaves_an_affine_that_others_read() -> None:
    net = Net().affine("a", "x", scale=one(2), shift=one(0)).affine("b", "a", scale=one(3), shift=one(0))
    graph, _ = apply("fold-constants", net.add("c", "a", "b").out(y="c"))
    assert len(graph.nodes) == 3


def test_fold_batch_norm_into_layers() -> None:
    net = Net().conv2d("c", "x", w=W, b=array(6), pad=(1, 1, 1, 1)).batch_norm("n", "c", **norm(6))
    net.reshape("f", "n", shape=(-1, 384)).linear("l", "f", w=array(5, 384)).batch_norm("m", "l", **norm(5))
    graph, report = apply("fold-batch-norm", net.out(y="m"))
    assert lines(graph) == [
        "%c = conv2d(%x, w=@c.w, b=@c.b) {pad=(1, 1, 1, 1)}",
        "%f = reshape(%c) {shape=(-1, 384)}",
        "%l = linear(%f, w=@l.w, b=@l.b)",
        "out y = %l",
    ]
    assert report.done == ("n into c", "m into l")


def test_fold_batch_norm_through_nothing() -> None:
    net = Net().conv2d("c", "x", w=W).clip("r", "c", lo=0.0).batch_norm("n", "r", **norm(6))
    graph, report = apply(
        "fold-batch-norm", net.conv2d("d", "x", w=W).batch_norm("m", "d", **norm(6)).out(y="n", z="m", w="d")
    )
    assert [node.op for node in graph.nodes] == ["conv2d", "clip", "affine", "conv2d", "affine"]
    assert report.refused == (
        "n becomes an affine: no conv2d or linear computes its input",
        "m becomes an affine: the output of d is read elsewhere too",
    )


def test_fuse_unary_diamond() -> None:
    net = Net().conv2d("c", "x", w=W).unary("s", "c", expr="(sigmoid x)").mul("m", "c", "s")
    graph, _ = apply("fuse-unary", net.out(y="m"))
    assert lines(graph) == [
        "%c = conv2d(%x, w=@c.w)",
        '%m = unary(%c) {expr="(mul x (sigmoid x))"}',
        "out y = %m",
    ]


def test_fuse_unary_hard_swish_spelled_out() -> None:
    net = Net().conv2d("c", "x", w=W).affine("p", "c", scale=one(1), shift=one(3)).clip("q", "p", lo=0.0, hi=6.0)
    net.mul("m", "c", "q").affine("y", "m", scale=one(1 / 6), shift=one(0))
    graph, _ = apply("fuse-unary", net.out(y="y"))
    assert lines(graph)[1] == '%y = unary(%c) {expr="(mul (mul x (min (max (add x 3.0) 0.0) 6.0)) 0.16666667)"}'


def test_fuse_unary_chain_with_a_prelu_and_a_square() -> None:
    net = Net().unary("e", "x", expr="(exp x)").prelu("p", "e", slope=one(0.5)).mul("q", "p", "p")
    graph, _ = apply("fuse-unary", net.out(y="q"))
    assert len(graph.nodes) == 1


def test_fuse_unary_leaves_what_is_free_behind_a_layer() -> None:
    net = Net().conv2d("c", "x", w=W).clip("r", "c", lo=0.0).unary("t", "r", expr="(tanh x)")
    graph, _ = apply("fuse-unary", net.out(y="t"))
    assert [node.op for node in graph.nodes] == ["conv2d", "clip", "unary"]
    net = Net().conv2d("c", "x", w=W).affine("a", "c", scale=one(2), shift=one(1)).unary("t", "a", expr="(tanh x)")
    graph, _ = apply("fuse-unary", net.out(y="t"))
    assert [node.op for node in graph.nodes] == ["conv2d", "affine", "unary"]


@pytest.mark.parametrize("slope", [array(4, 1, 1), None])
def test_fuse_unary_leaves_functions_of_two_values(slope: Any) -> None:
    net = Net().unary("e", "x", expr="(exp x)")
    if slope is None:
        net.max_pool("p", "x", kernel=(1, 1)).mul("y", "e", "p")
    else:
        net.prelu("y", "e", slope=slope)
    graph, report = apply("fuse-unary", net.out(y="y"))
    assert not report.done
    assert graph.by_name["e"].op == "unary"


def test_fuse_unary_starts_from_what_branches_share() -> None:
    net = Net().unary("e", "x", expr="(exp x)").unary("t", "e", expr="(tanh x)").unary("s", "e", expr="(sqrt x)")
    graph, _ = apply("fuse-unary", net.add("y", "t", "s").out(y="y"))
    assert lines(graph)[0] == '%y = unary(%x) {expr="(add (tanh (exp x)) (sqrt (exp x)))"}'


def test_fuse_unary_does_not_compute_a_shown_value_twice() -> None:
    net = Net().unary("e", "x", expr="(exp x)").unary("t", "e", expr="(tanh x)")
    graph, _ = apply("fuse-unary", net.out(y="t", z="e"))
    assert [node.inputs for node in graph.nodes] == [("x",), ("e",)]


def test_fold_affine_into_the_layer_before() -> None:
    net = Net().conv2d("c", "x", w=W, pad=(1, 1, 1, 1)).affine("a", "c", scale=array(6, 1, 1), shift=one(2))
    net.transpose("t", "a", perm=(0, 2, 3, 1)).linear("l", "t", w=array(3, 6)).affine(
        "b", "l", scale=array(1, 1, 3), shift=one(1)
    )
    graph, _ = apply("fold-affine", net.out(y="b"))
    assert [node.op for node in graph.nodes] == ["conv2d", "transpose", "linear"]


def test_fold_affine_into_the_layer_behind() -> None:
    net = Net().affine("a", "x", scale=array(4, 1, 1), shift=array(4, 1, 1))
    graph, _ = apply("fold-affine", net.conv2d("c", "a", w=array(6, 2, 3, 3), groups=2).out(y="c"))
    assert lines(graph) == ["%c = conv2d(%x, w=@c.w, b=@c.b) {groups=2}", "out y = %c"]
    net = Net().affine("a", "x", scale=array(4, 1, 1), shift=one(0))
    graph, _ = apply("fold-affine", net.conv2d("c", "a", w=W, pad=(1, 1, 1, 1)).out(y="c"))
    assert len(graph.nodes) == 1


def test_fold_affine_makes_a_layer_where_padding_sees_the_shift() -> None:
    net = Net().affine("a", "x", scale=array(4, 1, 1), shift=one(0.5))
    graph, report = apply("fold-affine", net.conv2d("c", "a", w=W, pad=(1, 1, 1, 1)).out(y="c"))
    assert lines(graph)[0] == "%a = conv2d(%x, w=@a.w, b=@a.b) {groups=4}"
    assert report.refused == ("a becomes a depthwise conv2d: no layer next to it can take it up",)


@pytest.mark.parametrize(("sample", "scale"), [((5,), array(5)), ((3, 5), array(3, 5)), ((4, 8, 8), array(4, 8, 8))])
def test_fold_affine_of_any_rank(sample: tuple[int, ...], scale: Any) -> None:
    net = Net(*sample).affine("a", "x", scale=scale, shift=scale)
    graph, _ = apply("fold-affine", net.out(y="a"))
    assert [node.op for node in graph.nodes] == ["reshape", "conv2d", "reshape"]


def test_merge_clips() -> None:
    net = Net().clip("a", "x", lo=0.0).clip("b", "a", hi=6.0).clip("c", "b", lo=-1.0, hi=math.inf)
    graph, _ = apply("merge-clips", net.out(y="c"))
    assert lines(graph) == ["%c = clip(%x) {hi=6.0, lo=0.0}", "out y = %c"]


def test_merge_clips_that_do_not_overlap() -> None:
    graph, _ = apply("merge-clips", Net().clip("a", "x", lo=-0.25, hi=0.0).clip("b", "a", lo=0.5, hi=0.75).out(y="b"))
    assert (graph.nodes[0].attrs["lo"], graph.nodes[0].attrs["hi"]) == (0.5, 0.5)


def test_merge_clips_leaves_a_clip_that_others_read() -> None:
    graph, _ = apply("merge-clips", Net().clip("a", "x", lo=0.0).clip("b", "a", hi=0.5).out(y="a", z="b"))
    assert len(graph.nodes) == 2


def test_normalize_pooling() -> None:
    net = Net().avg_pool("a", "x", kernel=(8, 8)).reduce_mean("m", "x", axes=(2, 3), keepdims=0)
    net.max_pool("s", "x", kernel=(1, 1), stride=(2, 2)).avg_pool("i", "x", kernel=(1, 1))
    graph, _ = apply("normalize-pooling", net.out(a="a", m="m", s="s", i="i"))
    assert lines(graph) == [
        "%a = reduce_mean(%x) {axes=(2, 3)}",
        "%m = reduce_mean(%x) {axes=(2, 3)}",
        "%m.shaped = reshape(%m) {shape=(-1, 4)}",
        "%s = slice(%x) {ends=(4, 8, 8), starts=(0, 0, 0), steps=(1, 2, 2)}",
        "out a = %a",
        "out m = %m.shaped",
        "out s = %s",
        "out i = %x",
    ]


def test_normalize_pooling_takes_up_padding() -> None:
    net = Net().pad("p", "x", pads=(0, 1, 0, 0, 2, 1)).conv2d("c", "p", w=W, pad=(0, 1, 0, 1))
    net.pad("q", "x", pads=(0, 1, 1, 0, 1, 1)).avg_pool("a", "q", kernel=(3, 3))
    graph, _ = apply("normalize-pooling", net.out(c="c", a="a"))
    assert lines(graph)[:2] == [
        "%c = conv2d(%x, w=@c.w) {pad=(1, 1, 2, 2)}",
        "%a = avg_pool(%x) {kernel=(3, 3), pad=(1, 1, 1, 1)}",
    ]


@pytest.mark.parametrize("attrs", [{"pads": (0, 1, 0, 0, 2, 1), "value": 0.5}, {"pads": (1, 0, 0, 1, 0, 0)}])
def test_normalize_pooling_leaves_other_padding(attrs: dict[str, Any]) -> None:
    channels = 4 + 2 * attrs["pads"][0]
    net = Net().pad("p", "x", **attrs).conv2d("c", "p", w=array(6, channels, 3, 3))
    graph, report = apply("normalize-pooling", net.out(c="c"))
    assert len(graph.nodes) == 2
    assert not report.done


def test_drop_noop_movement() -> None:
    net = Net().reshape("r", "x", shape=(-1, 4, 8, 8)).concat("k", "r", axis=1).transpose("t", "k", perm=(0, 1, 2, 3))
    net.slice("s", "t", starts=(0, 0, 0), ends=(4, 8, 8), steps=(1, 1, 1)).pad("p", "s", pads=(0,) * 6)
    net.resize("z", "p", rows=tuple(range(8)), cols=tuple(range(8))).clip("c", "z", lo=0.0)
    graph, _ = apply("drop-noop-movement", net.out(y="c"))
    assert [node.op for node in graph.nodes] == ["clip"]


def test_drop_noop_movement_merges_chains() -> None:
    net = Net().reshape("a", "x", shape=(-1, 256)).reshape("b", "a", shape=(-1, 16, 16))
    net.slice("s", "x", starts=(0, 1, 0), ends=(4, 8, 8), steps=(1, 2, 1))
    net.slice("u", "s", starts=(1, 1, 0), ends=(4, 3, 8), steps=(1, 1, 3))
    net.transpose("t", "x", perm=(0, 2, 3, 1)).transpose("v", "t", perm=(0, 3, 1, 2))
    graph, _ = apply("drop-noop-movement", net.out(b="b", u="u", v="v"))
    assert [node.op for node in graph.nodes] == ["reshape", "slice"]
    assert graph.outputs[2].value == "x"


def test_drop_noop_movement_turns_a_transpose_of_ones_into_a_reshape() -> None:
    graph, _ = apply("drop-noop-movement", Net(5, 1, 1).transpose("t", "x", perm=(0, 2, 3, 1)).out(y="t"))
    assert lines(graph)[0] == "%t = reshape(%x) {shape=(-1, 1, 1, 5)}"


def shuffled(net: Net, value: str, *shape: int) -> Net:
    """Channels of (2k, h, w) dealt to two halves, as exporters write it, and each half taken."""
    channels, h, w = shape
    net.reshape("r", value, shape=(-1, channels // 2, 2, h * w)).transpose("t", "r", perm=(0, 2, 1, 3))
    net.reshape("h", "t", shape=(-1, 2, 1, channels // 2, h, w))
    for i, name in enumerate("ab"):
        ends = (i + 1, 1, channels // 2, h, w)
        net.slice(f"s{name}", "h", starts=(i, 0, 0, 0, 0), ends=ends, steps=(1,) * 5)
        net.reshape(name, f"s{name}", shape=(-1, channels // 2, h, w))
    return net


def test_movement_to_slice_of_a_channel_shuffle() -> None:
    graph, report = apply("movement-to-slice", shuffled(Net(6, 2, 3), "x", 6, 2, 3).out(a="a", b="b"))
    assert lines(graph)[:-2] == [
        "%a = slice(%x) {ends=(5, 2, 3), starts=(0, 0, 0), steps=(2, 1, 1)}",
        "%b = slice(%x) {ends=(6, 2, 3), starts=(1, 0, 0), steps=(2, 1, 1)}",
    ]
    assert report.done == ("a", "b")


def test_movement_to_slice_leaves_what_is_no_slice() -> None:
    net = Net(6, 2, 3).reshape("r", "x", shape=(-1, 2, 3, 6)).transpose("t", "r", perm=(0, 2, 1, 3))
    net.reshape("p", "t", shape=(-1, 6, 2, 3))  # a permutation
    net.slice("s", "p", starts=(0, 0, 0), ends=(3, 2, 3), steps=(1, 1, 1))  # channels 0, 3, 1
    net.slice("u", "x", starts=(1, 0, 0), ends=(5, 2, 3), steps=(2, 1, 1))  # a slice already
    graph, report = apply("movement-to-slice", net.out(p="p", s="s", u="u"))
    assert not report.done
    assert [node.op for node in graph.nodes] == ["reshape", "transpose", "reshape", "slice", "slice"]


def test_split_tail() -> None:
    net = Net(4).linear("l", "x", w=ROW).reshape("r", "l", shape=(-1, 3, 1)).softmax("s", "r", axis=1)
    graph, _ = apply("split-tail", net.affine("a", "s", scale=array(1, 1), shift=array(1, 1)).out(p="a"))
    assert lines(graph) == [
        "%l = linear(%x, w=@l.w)",
        "out l = %l",
        "tail",
        "%r = reshape(%l) {shape=(-1, 3, 1)}",
        "%s = softmax(%r) {axis=1}",
        "%a = affine(%s, scale=@a.scale, shift=@a.shift)",
        "out p = %a",
    ]


def test_split_tail_keeps_the_order_of_outputs() -> None:
    net = Net(4).linear("l", "x", w=ROW).unary("s", "l", expr="(sigmoid x)").linear("m", "x", w=ROW)
    graph, _ = apply("split-tail", net.out(score="s", box="m", raw="l"))
    assert lines(graph) == [
        "%l = linear(%x, w=@l.w)",
        "%m = linear(%x, w=@m.w)",
        "out raw = %l",
        "out box = %m",
        "tail",
        '%s = unary(%raw) {expr="(sigmoid x)"}',
        "out score = %s",
        "out box = %box",
        "out raw = %raw",
    ]


def test_split_tail_leaves_functions_inside() -> None:
    net = Net(4).linear("l", "x", w=ROW).unary("s", "l", expr="(sigmoid x)").mul("m", "l", "s")
    graph, report = apply("split-tail", net.out(y="m"))
    assert graph.tail is None
    assert report.refused


def test_split_tail_refuses_a_softmax_inside() -> None:
    net = Net(4).linear("l", "x", w=ROW).softmax("s", "l", axis=1).linear("m", "s", w=array(2, 3))
    with pytest.raises(UnsupportedOpError, match=r"linear 'm' reads its result \(node 's'\)"):
        apply("split-tail", net.out(y="m"))


def test_canonical_names() -> None:
    net = Net().conv2d("late", "x", w=W).conv2d("early", "x", w=W).clip("Relu_9", "early", lo=0.0)
    net.clip("z", "late", lo=0.0, hi=6.0).add("Add", "Relu_9", "z").clip("q", "Add", lo=-1.0)
    graph, _ = apply("canonical-names", net.out(y="q"))
    assert [node.name for node in graph.nodes] == ["early", "relu.0", "late", "relu6.0", "add.0", "clip.0"]


def test_canonical_names_of_the_tail() -> None:
    net = Net(4).linear("fc", "x", w=ROW).clip("Relu_1", "fc", lo=0.0).softmax("Softmax_2", "Relu_1", axis=1)
    split, _ = apply("split-tail", net.out(p="Softmax_2"))
    graph, _ = apply("canonical-names", split)
    assert lines(graph) == [
        "%fc = linear(%x, w=@fc.w)",
        "%relu.0 = clip(%fc) {lo=0.0}",
        "out relu.0 = %relu.0",
        "tail",
        "%softmax.0 = softmax(%relu.0) {axis=1}",
        "out p = %softmax.0",
    ]


def test_canonical_names_give_a_made_layer_a_neutral_name() -> None:
    net = Net().affine("Mul_3", "x", scale=array(4, 1, 1), shift=one(0)).clip("r", "Mul_3", lo=0.0)
    folded, _ = apply("fold-affine", net.out(y="r"))
    graph, _ = apply("canonical-names", folded)
    assert [node.name for node in graph.nodes] == ["affine.0", "relu.0"]
