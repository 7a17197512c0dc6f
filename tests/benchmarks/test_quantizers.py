"""The table beside other quantisers: what is kept, what a missing peer leaves, and the network the toolkit is given."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from benchmarks import quantizers, toolkit
from benchmarks.quantizers import FEW, NNCF, OURS, TOOLKIT, Bench, PeerError, Row
from qcompile.exec.torch_exec import TorchGraph
from qcompile.ir import Graph, GraphBuilder, TensorType

MODELS = Path(__file__).parents[2] / "models"


def digits(folder: Path, peer_python: str = "/nowhere/python") -> Bench:
    """The shipped digits network in place of a pack's."""
    home = MODELS / "digits_resnet"

    def arrays(network: str, split: str, count: int | None = None) -> dict[str, np.ndarray]:
        with np.load(home / {"calib": "calib.npz", "dev": "eval.npz"}[split]) as file:
            return {name: file[name][:count] for name in file.files}

    load = SimpleNamespace(model=lambda network: home / f"{network}.onnx", arrays=arrays)
    return Bench("digits_resnet", load, folder, peer_python)


def test_a_peer_that_is_not_there_has_a_row_that_says_so(tmp_path: Path) -> None:
    bench = digits(tmp_path)
    for bits, rounding in ((quantizers.UNIFORM, NNCF), (TOOLKIT, TOOLKIT)):
        row = bench.measure(Row("digits_resnet", "mixed50", bits, rounding))
        assert "/nowhere/python" in row.note
        assert row.top1 is None
        assert quantizers.line(row)[-1] == row.note
    assert bench.measure(Row("digits_resnet", "mixed50", TOOLKIT, OURS)).note == "no bits of mct"


def test_a_failing_peer_shows_its_last_line(tmp_path: Path) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho first >&2\necho 'No module named nncf' >&2\nexit 1\n")
    script.chmod(0o755)
    with pytest.raises(PeerError, match="No module named nncf"):
        digits(tmp_path, str(script))._run(["-m", "anything"])


def test_bits_go_from_one_to_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A toolkit in name only chooses 4 bits everywhere; ours then rounds its plan, and counts the same bytes."""
    bench = digits(tmp_path)
    layers = [node.name for node in bench.graph.nodes if bench._layer(node)]
    asked = []

    def peer(module: str, paths: list[str], options: list[str]) -> tuple[dict[str, Any], np.ndarray]:
        asked.append(options)
        return {"bits": dict.fromkeys(layers, 4)}, bench.float_scores

    monkeypatch.setattr(bench, "_peer", peer)
    row = Row("digits_resnet", "mixed50", TOOLKIT, TOOLKIT)
    theirs = bench.measure(row)
    assert asked == [["--bytes", str(bench.full // 2), "--widths", "all"]]
    assert (theirs.agreement, theirs.top1) == (1.0, theirs.float_top1)
    assert theirs.weight_bytes == sum(-(-bench.graph.const(bench.graph.by_name[k], "w").size // 2) for k in layers)
    ours = bench.measure(replace(row, rounding=OURS))
    assert ours.weight_bytes is not None
    assert ours.weight_bytes == pytest.approx(theirs.weight_bytes, rel=0.01)
    assert ours.agreement is not None
    assert ours.agreement > 0.9
    few = bench.measure(replace(row, bits=FEW))
    assert asked[-1][-2:] == ["--widths", "own"]
    assert few.note == ""


def test_rows_that_have_figures_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made: list[tuple[str, str]] = []

    class Fake:
        def __init__(self, network: str, *rest: object) -> None: ...

        def measure(self, row: Row) -> Row:
            made.append((row.bits, row.rounding))
            return replace(row, top1=0.5, note="no peer" if row.rounding == NNCF else "")

    (tmp_path / "load.py").write_text("")
    out = tmp_path / "found.json"
    command = ["--pack", str(tmp_path), "--work", str(tmp_path), "--json", str(out), "--networks", "net"]
    assert quantizers.main([*command, "--rows", "w8a8"], Fake) == 0
    assert len(made) == 3
    made.clear()
    assert quantizers.main([*command, "--rows", "w8a8,mixed50"], Fake) == 0
    assert made == [(quantizers.UNIFORM, NNCF), *quantizers.PAIRS[True]]  # what had no figures, and what is new
    assert len(json.loads(out.read_text())) == 3 + len(quantizers.PAIRS[True])
    assert "50.00" in capsys.readouterr().out


def rebuilt(graph: Graph) -> toolkit.Network:
    """The network as it arrives in the peers' environment."""
    about, arrays = quantizers.described(graph)
    about = json.loads(json.dumps(about))
    return toolkit.Network(about["nodes"], arrays, about["port"], about["output"]).eval()


def test_the_described_network_is_the_same_function(tmp_path: Path) -> None:
    bench = digits(tmp_path)
    path, x = bench.model, bench.calib["input"][:16].astype(np.float32)
    network = rebuilt(bench.graph)
    with torch.no_grad():
        found = network(torch.from_numpy(x)).flatten(1).numpy()
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    expected = session.run(None, {session.get_inputs()[0].name: x})[0].reshape(len(x), -1)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    assert sorted(toolkit.layer_modules(network).values()) == sorted(
        n.name for n in bench.graph.nodes if bench._layer(n)
    )


def odd_net() -> Graph:
    """Uneven padding, strided slices, padded channels, a leaky slope, a pool, ReLU6 and a concatenation."""
    rng = np.random.default_rng(0)
    b = GraphBuilder("odd", "float")
    x = b.input("x", TensorType((-1, 4, 9, 9), "f32"))
    w = rng.normal(size=(6, 2, 3, 3)).astype(np.float32)
    attrs = {"pad": (0, 1, 2, 1), "stride": (2, 2), "groups": 2}
    h = b.add("conv2d", [x], name="c", consts={"w": w, "b": rng.normal(size=6).astype(np.float32)}, attrs=attrs)
    h = b.add("prelu", [h], name="leaky", consts={"slope": np.full((6, 1, 1), 0.1, np.float32)})
    cut = {"starts": (1, 0, 0), "ends": (4, 9, 9), "steps": (1, 2, 2)}
    s = b.add("slice", [x], name="cut", attrs=cut)
    s = b.add("pad", [s], name="wide", attrs={"pads": (1, 0, 0, 2, 0, 0), "value": 0.0})
    h = b.add("add", [h, s], name="sum")
    h = b.add(
        "concat", [h, b.add("clip", [h], name="six", attrs={"lo": 0.0, "hi": 6.0})], name="both", attrs={"axis": 1}
    )
    b.output("y", b.add("max_pool", [h], name="pool", attrs={"kernel": (2, 2), "stride": (2, 2)}))
    return b.build()


def test_every_operation_the_toolkit_is_given() -> None:
    graph = odd_net()
    x = np.random.default_rng(1).normal(size=(3, 4, 9, 9)).astype(np.float32)
    with torch.no_grad():
        found = rebuilt(graph)(torch.from_numpy(x))
    torch.testing.assert_close(found, TorchGraph(graph).run({"x": x})["y"], rtol=1e-5, atol=1e-5)


def test_what_it_cannot_be_given_is_refused() -> None:
    for op, attrs in (("clip", {"lo": -1.0, "hi": 1.0}), ("softmax", {}), ("max_pool", {"pad": (0, 0, 1, 1)})):
        with pytest.raises(NotImplementedError, match=op):
            toolkit.module_of({"op": op, "attrs": attrs}, {})
