"""The text form of graphs reads back exactly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.errors import GraphError
from qcompile.ir import BATCH, OPS, Array, Graph, GraphBuilder, Grid, Input, Node, Output, TensorType, verify
from qcompile.ir.text import from_text, same_graph, to_text

EXAMPLE = (
    """\
graph net : float
in %x : f32[N,3,8,8]
%conv1 = conv2d(%x, w=@conv1.w, b=@conv1.b) {pad=(1, 1, 1, 1)} : f32[N,2,8,8]  # conv · fold-batch-norm
%relu = clip(%conv1) {hi=6.0, lo=0.0} : f32[N,2,8,8]
%flat = reshape(%relu) {shape=(-1, 128)} : f32[N,128]
out scores = %flat
const @conv1.w : float32[2,3,3,3] [%s]
const @conv1.b : float32[2] [0.1, -1e-20]
tail
graph head : float
in %%scores : f32[N,128]
%%softmax = softmax(%%scores) {axis=1} : f32[N,128]
out probabilities = %%softmax
""".replace("%", "%%")
    .replace("%%%%", "%%")
    .replace("[%%s]", "[%s]")
    % ", ".join(["1.0"] * 54)
)


def test_an_example_is_read_and_written() -> None:
    graph = from_text(EXAMPLE)
    verify(graph)
    assert graph.by_name["conv1"].origin == ("conv", "fold-batch-norm")
    assert graph.consts["conv1.b"].tolist() == np.array([0.1, -1e-20], np.float32).tolist()
    assert graph.tail is not None
    assert graph.tail.outputs == (Output("probabilities", "softmax"),)
    assert to_text(graph) == EXAMPLE


def test_the_integer_level_and_its_grids() -> None:
    b = GraphBuilder("q", "int")
    grid = Grid(1 / 3, 7, "u8")
    x = b.input("x", TensorType((BATCH, 4), "u8"), grid)
    consts: dict[str, Array] = {"m0": np.array([3], np.int32), "e": np.array([[1, 2, 3, 4]], np.int8)[0]}
    attrs = {"lo": 0, "hi": 15, "dtype": "u4", "zeros": (7,)}
    b.output("y", b.add("requant", [x], name="y", consts=consts, attrs=attrs), Grid(1e-30, 0, "u4"))
    graph = b.build()
    text = to_text(graph)
    assert "in %x : u8[N,4] grid(0.3333333333333333, 7, u8)" in text
    assert '{dtype="u4", hi=15, lo=0, zeros=(7)}' in text
    assert same_graph(from_text(text), graph)
    assert from_text(text).inputs == graph.inputs


def large() -> Graph:
    b = GraphBuilder("g", "float")
    x = b.input("x", TensorType((BATCH, 9), "f32"))
    w = np.arange(81, dtype=np.float32).reshape(9, 9)
    b.output("y", b.add("linear", [x], name="fc", consts={"w": w}))
    return b.build()


def test_large_constants_are_hashes() -> None:
    graph = large()
    text = to_text(graph)
    assert "const @fc.w : float32[9,9] sha256:" in text
    assert same_graph(from_text(text, graph.consts), graph)
    with pytest.raises(GraphError, match=r"line 5: constant @fc.w is written as a hash and was not given"):
        from_text(text)
    with pytest.raises(GraphError, match="another content"):
        from_text(text, {"fc.w": np.zeros((9, 9), np.float32)})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the text of a graph must begin with"),
        ("graph g", "line 1: expected ':', found 'the end'"),
        ("graph g : float\nfoo", "line 2: a line cannot begin with 'foo'"),
        ("graph g : float\n%a = magic(%x) : f32[N]", "line 2: unknown operator 'magic'"),
        ("graph g : float\n%a = softmax(%x) : f32[N,2]", "line 2: softmax needs the attribute axis"),
        ("graph g : float\n%a = softmax(%x) {axis=q} : f32[N,2]", "line 2: 'q' is not a number"),
        ("graph g : float\nin %x : f32[3]", "line 2: the first dimension of a value is the batch, N"),
        ("graph g : float\nin %x : f99[N]", "line 2: unknown dtype 'f99'"),
        ("graph g : float\nin %x : f32[N,k]", "line 2: 'k' is not an integer"),
        ("graph g : float\nin %x : f32[N] more", "line 2: unexpected 'more'"),
        ("graph g : float\nconst @w : float32[3] [1.0]", "line 2: constant @w: cannot reshape"),
        ("graph g : float\nin %x ~ f32[N]", "line 2: cannot read '~ f32"),
        ("graph g : float\ntail", "the text of a graph must begin with"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(text: str, message: str) -> None:
    with pytest.raises(GraphError) as error:
        from_text(text)
    assert message in error.value.message


names = st.text(min_size=1, max_size=6) | st.sampled_from(["a.b/c:0", "in", "out", "tail", "const", "grid", "N", "#"])
dims = st.lists(st.integers(1, 9), max_size=3).map(lambda shape: (BATCH, *shape))
types = st.builds(TensorType, dims, st.sampled_from(["f32", "u4", "i8", "i32"]))
grids = st.none() | st.builds(Grid, st.floats(allow_nan=False), st.integers(-300, 300), st.sampled_from(["u8", "u4"]))
origins = st.lists(st.text(max_size=6) | st.sampled_from(["a · b", "# x", '"q"', " pad "]), max_size=3).map(tuple)
shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)


@st.composite
def arrays(draw: st.DrawFn) -> Array:
    dtype = draw(st.sampled_from(["float32", "float64", "int8", "uint8", "int32", "int64"]))
    shape = draw(shapes)
    raw = draw(st.binary(min_size=8, max_size=8))
    rng = np.random.default_rng(list(raw))
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(rng.bytes(size), dtype=dtype).reshape(shape)


@st.composite
def nodes(draw: st.DrawFn) -> Node:
    number = st.floats(allow_nan=False)
    op, consts, attrs = draw(
        st.one_of(
            st.tuples(st.just("clip"), st.just(()), st.fixed_dictionaries({"lo": number, "hi": number})),
            st.tuples(st.just("unary"), st.just(()), st.fixed_dictionaries({"expr": st.text(max_size=5)})),
            st.tuples(
                st.just("pad"), st.just(()),
                st.fixed_dictionaries(
                    {"pads": st.lists(st.integers(), max_size=4).map(tuple), "value": number | st.integers()}
                ),
            ),
            st.tuples(st.just("linear"), st.tuples(st.tuples(st.just("w"), names)), st.just({})),
        )
    )  # fmt: skip
    return Node(
        draw(names),
        op,
        (draw(names),),
        consts,
        OPS[op].check(1, dict(consts), attrs),
        draw(types),
        draw(origins),
    )


ports = st.lists(st.builds(Input, names, types, grids), max_size=3).map(tuple)
shown = st.lists(st.builds(Output, names, names, grids), max_size=2).map(tuple)
bodies = st.lists(nodes(), max_size=4).map(tuple)
constants = st.dictionaries(names, arrays(), max_size=3)


def graphs(tail: st.SearchStrategy[Graph | None]) -> st.SearchStrategy[Graph]:
    levels = st.sampled_from(["float", "int"])
    return st.builds(Graph, names, levels, ports, bodies, shown, constants, tail=tail)


@given(graphs(st.none() | graphs(st.none())))
def test_parse_of_print_is_the_same(graph: Graph) -> None:
    """Any graph, legal or not: the text form neither adds nor loses anything."""
    consts = dict(graph.tail.consts if graph.tail else {}) | dict(graph.consts)
    if graph.tail is not None:
        # One mapping serves both graphs, so they must agree on the constants they share.
        graph = replace(graph, tail=replace(graph.tail, consts={k: consts[k] for k in graph.tail.consts}))
    again = from_text(to_text(graph), consts)
    assert same_graph(again, graph)
    assert again.inputs == graph.inputs
    assert again.outputs == graph.outputs
    assert again.nodes == graph.nodes
