"""All feed-forward networks of the evaluation pack: compiled, exact, integer-only, and as accurate as promised."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from qcompile import api
from qcompile.artifact import Artifact

PACK = Path(__file__).parents[3] / "shared" / "data"

pytestmark = pytest.mark.skipif(
    not (PACK / "load.py").exists(), reason="the evaluation pack ../shared/data is not here"
)

# network → allowed loss of top-1 against float, least agreement with float (onnxruntime's static W8A8 less 0.5)
ACCURACY: dict[str, tuple[float, float | None]] = {
    "resnet20_cifar10": (0.005, 0.9782),
    "resnet56_cifar10": (0.005, 0.9818),
    "mlperf_tiny_resnet8_cifar10": (0.005, 0.9682),
    "mlperf_tiny_dscnn_kws": (0.005, 0.9825),
    "mobilenetv2_tf_imagenet": (0.01, 0.947),
    "squeezenet1_1_imagenet": (0.01, 0.955),
    "tiny_darknet_imagenet": (0.01, 0.903),
}

NETWORKS = (
    "resnet20_cifar10",
    "resnet20_cifar10_bn",
    "resnet20_cifar10_dynamo",
    "resnet32_cifar10",
    "resnet56_cifar10",
    "mlperf_tiny_resnet8_cifar10",
    "mlperf_tiny_dscnn_kws",
    "mlperf_tiny_mobilenetv1_025_vww",
    "mlperf_tiny_ad_autoencoder",
    "mobilenetv1_025_128_imagenet_dq",
    "mobilenetv2_tf_imagenet",
    "squeezenet1_1_imagenet",
    "tiny_darknet_imagenet",
    "ultraface_rfb320",
    "fastestdet_coco",
    "deeplabv3_mnv2_voc",
)

LARGE = {"mobilenetv2_tf_imagenet", "tiny_darknet_imagenet", "squeezenet1_1_imagenet", "deeplabv3_mnv2_voc"}
"""Networks whose reference takes a while: fewer inputs here, all of them in the slow test."""


def pack() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pack_load", PACK / "load.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def data(network: str, split: str, count: int) -> dict[str, np.ndarray] | None:
    """The pack's data, or None for networks whose data is not in it."""
    load = pack()
    return dict(load.arrays(network, split, count)) if network in load.NETWORKS else None


def compiled(network: str, folder: Path, samples: int) -> api.CompileResult:
    calib = data(network, "calib", samples)
    if calib is not None:
        calib.pop("labels", None)
    return api.compile(
        PACK / "models" / f"{network}.onnx", target="cpu", uniform="w8a8", calib=calib,
        out=folder / f"{network}.qc", measure=False, samples=None if calib is not None else 8,
    )  # fmt: skip


def samples_for(network: str, artifact: Artifact, count: int) -> dict[str, np.ndarray]:
    """Samples of `dev`, or noise for a network without data."""
    inputs = data(network, "dev", count)
    if inputs is None:
        port = artifact.graph.inputs[0]
        rng = np.random.default_rng(0)
        inputs = {port.name: rng.standard_normal((count, *port.type.sample)).astype(np.float32)}
    return inputs


@pytest.mark.parametrize("network", NETWORKS)
def test_artifact_equals_the_reference(network: str, tmp_path: Path) -> None:
    result = compiled(network, tmp_path, 16 if network in LARGE else 64)
    count = 4 if network in LARGE else 256 if "cifar10" in network else 64
    inputs = samples_for(network, result.artifact, count)
    found = api.verify(result.artifact, inputs)
    assert found["inputs"] >= count
    assert found["differing_integers"] == 0
    assert found["float_operations"] == 0, found["found"]


@pytest.mark.slow
@pytest.mark.parametrize("network", ACCURACY)
def test_accuracy_of_w8a8(network: str, tmp_path: Path) -> None:
    result = compiled(network, tmp_path, 256)
    dev = data(network, "dev", 100_000)
    assert dev is not None
    evaluation = api.evaluate(result.artifact, dev, PACK / "models" / f"{network}.onnx")
    loss, agreement = ACCURACY[network]
    real = float_top1(network, dev)
    assert evaluation["top1"] >= real - loss, evaluation
    assert agreement is None or evaluation["agreement"] >= agreement, evaluation


def float_top1(network: str, dev: dict[str, np.ndarray]) -> float:
    from qcompile.exec.ort_exec import OrtModel

    session = OrtModel(PACK / "models" / f"{network}.onnx", threads=2)
    hits = 0
    for start in range(0, len(dev["labels"]), 64):
        y = session.run({"input": dev["input"][start : start + 64]})
        hits += int((next(iter(y.values())).argmax(1) == dev["labels"][start : start + 64]).sum())
    return hits / len(dev["labels"])
