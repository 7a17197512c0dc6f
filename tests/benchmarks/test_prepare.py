"""Networks, and the files that are made of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from benchmarks import latency, networks, prepare
from qcompile import api

DIGITS = Path(__file__).parents[2] / "models" / "digits_resnet"

PARAMETERS = {"resnet18": 11_689_512, "resnet50": 25_557_032, "mobilenetv2": 3_504_872}
MACS = {"resnet18": 1_814_073_344, "resnet50": 4_089_184_256, "mobilenetv2": 300_774_272}


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_networks_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        network = networks.NETWORKS[name]()
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", networks.NETWORKS)
def test_networks_export_and_are_captured(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.onnx"
    networks.export(name, path)
    graph = api.capture(path)
    assert sum(prepare.node_macs(graph, node) for node in graph.nodes) == MACS[name]
    model = onnx.load(path)
    assert prepare.input_shapes(model) == {"input": (1, 3, 224, 224)}


def test_activations_stay_finite_and_weights_are_seeded() -> None:
    network, x = networks.build("mobilenetv2"), torch.randn(1, *networks.IMAGE)
    with torch.no_grad():
        y = network(x)
        assert torch.isfinite(y).all()
        assert 0 < y.std() < 100
        assert torch.equal(y, networks.build("mobilenetv2")(x))


def test_fixed_batch() -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3, 8, 8])
    model = helper.make_model(helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y]))
    prepare.fix_batch(model)
    assert prepare.input_shapes(model) == {"x": (1, 3, 8, 8)}
    assert [d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim] == [1, 3, 8, 8]


def choices(**seconds: float) -> dict[str, object]:
    """Costs by bits, such as w4a6=1.0."""
    pairs = {(int(name[1]), int(name[3])): value for name, value in seconds.items()}
    return {"reads": "x", "choices": [{"bits": list(bits), "seconds": value} for bits, value in pairs.items()]}


def test_fastest_bits_are_joint_where_layers_read_the_same() -> None:
    layers = {
        "a": choices(w4a6=1.0, w8a6=3.0, w4a8=2.0, w8a8=2.0),
        "b": choices(w4a6=9.0, w8a6=9.0, w4a8=5.0, w8a8=5.0),
    }
    # Six bits would help layer a alone, but cost layer b more.
    assert prepare.fastest_bits(layers) == {"a": [8, 8], "b": [8, 8]}
    layers["b"]["reads"] = "y"
    assert prepare.fastest_bits(layers) == {"a": [4, 6], "b": [8, 8]}


def test_fastest_bits_keep_to_the_least() -> None:
    assert prepare.fastest_bits({"a": choices(w2a8=1.0, w4a3=1.0, w4a8=2.0)}) == {"a": [4, 8]}


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    """A data pack with one convolutional network, twice, and one that is not convolutional."""
    folder = tmp_path / "pack"
    (folder / "models").mkdir(parents=True)
    model = (DIGITS / "digits_resnet.onnx").read_bytes()
    for name in ("digits", "digits_bn"):
        (folder / "models" / f"{name}.onnx").write_bytes(model)
    port = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [port], [port])
    onnx.save(helper.make_model(graph), folder / "models" / "dense.onnx")
    (folder / "load.py").write_text(
        f"import numpy as np\nNETWORKS = {{'digits'}}\nX = np.load({str(DIGITS / 'calib.npz')!r})['input']\n"
        "def arrays(name, split, n):\n    return {'input': X[:n], 'labels': 0}\n"
    )
    return folder


def test_pack_networks_are_the_convolutional_ones_once(pack: Path) -> None:
    assert prepare.pack_networks(pack) == ["digits"]


@pytest.mark.slow
def test_one_command_from_the_pack_to_table_and_json(
    pack: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, work = tmp_path / "figures.json", tmp_path / "work"
    arguments = ["--pack", str(pack), "--networks", "digits", "--engines", "onnxruntime", "--quick", "--rounds", "2"]
    assert latency.main([*arguments, "--work", str(work), "--json", str(out)]) == 0
    read = json.loads(out.read_text())
    assert read["conditions"]["cpus"] >= 1
    rows = {row["contender"]["name"]: row for row in read["results"][0]["rows"]}
    for name in ("qcompile w8a8", "onnxruntime fp32", "onnxruntime int8 qdq", "onnxruntime int8 qoperator"):
        assert len(rows[name]["seconds"]) == 2, rows[name]["note"]
    assert rows["qcompile w8a8"]["ratio"]["any"] > 0
    assert len(np.load(work / "digits" / "calib.npz")["input"]) == prepare.SAMPLES
    assert "### qcompile beside the best int8 peer" in capsys.readouterr().out
