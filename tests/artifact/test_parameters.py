"""Constants packed at their real width and back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qcompile.artifact import parameters
from qcompile.errors import ArtifactError, InternalError
from qcompile.ir import BATCH, INT, Array, Graph, GraphBuilder, Grid, TensorType
from qcompile.semantics.grids import weight_range


def layer(w: Array, bits: int) -> Graph:
    b = GraphBuilder("g", INT)
    x = b.input("x", TensorType((BATCH, w.shape[1]), "u8"), Grid(1.0, 0, "u8"))
    y = b.add("linear", [x], name="fc", consts={"w": w}, attrs={"weight_bits": bits})
    b.output("y", y, Grid(1.0, 0, "i32"))
    return b.build()


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 11)])
def test_weights_of_every_width(bits: int, shape: tuple[int, int]) -> None:
    lo, hi = weight_range(bits)
    w = np.random.default_rng(bits).integers(lo, hi + 1, shape).astype(np.int8)
    w.flat[0] = lo
    graph = layer(w, bits)
    data, index = parameters.encode(graph)
    assert len(data) == parameters.weight_bytes(graph) == -(-w.size * bits // 8)
    back = parameters.decode(data, index)
    np.testing.assert_array_equal(back["fc.w"], w)
    assert back["fc.w"].dtype == np.int8
    assert not back["fc.w"].flags.writeable


def test_all_kinds_of_constants(graph: Graph) -> None:
    back = parameters.decode(*parameters.encode(graph))
    assert graph.tail is not None
    for name, array in {**graph.consts, **graph.tail.consts}.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array)


def test_a_weight_that_does_not_fit() -> None:
    with pytest.raises(InternalError, match=r"constant 'fc.w' does not fit into 3 bits"):
        parameters.encode(layer(np.array([[9]], np.int8), 3))


@pytest.mark.parametrize(
    "change",
    [{"offset": 10**9}, {"offset": -1}, {"bytes": 3}, {"shape": [10**6]}, {"dtype": "object"}, {"bits": "x"}],
)
def test_an_index_that_does_not_fit_the_data(graph: Graph, change: dict[str, object]) -> None:
    data, index = parameters.encode(graph)
    entries = json.loads(index)
    entries[0] |= change
    with pytest.raises(ArtifactError, match=r"parameters\.json does not describe parameters\.bin"):
        parameters.decode(data, json.dumps(entries))


def test_large_constants_are_read_when_they_are_asked_for(
    graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parameters.StoredConstants, "SMALL", 32)
    data, index = parameters.encode(graph)
    path = tmp_path / "parameters.bin"
    path.write_bytes(data)
    known = parameters.decode(data, index)
    stored = parameters.StoredConstants(path, index, {name: known[name] for name in graph.consts})
    assert list(stored) == list(graph.consts)
    for name, array in graph.consts.items():
        assert stored[name].dtype == array.dtype
        np.testing.assert_array_equal(stored[name], array)
        assert not stored[name].flags.writeable
        # Weights are not kept; what is small is.
        assert (stored[name] is stored[name]) == (array.nbytes <= 32)
    lazy = replace(graph, consts=stored)
    assert lazy.consts is stored
    assert lazy.content_hash == graph.content_hash
    assert dict(lazy.held().consts).keys() == graph.consts.keys()
    # A folder that is replaced leaves the loaded artifact as it is; a file that is changed in place is found.
    (tmp_path / "new").write_bytes(bytes(len(data)))
    (tmp_path / "new").replace(path)
    np.testing.assert_array_equal(stored["conv:acc.w"], graph.consts["conv:acc.w"])
    other = parameters.StoredConstants(path, index, {name: known[name] for name in graph.consts})
    with pytest.raises(ArtifactError, match=r"'conv:acc.w' has changed"):
        other["conv:acc.w"]
