"""Trained networks from many sources, captured, compared with onnxruntime, and canonicalised."""

from pathlib import Path

import numpy as np
import pytest

from qcompile.capture import capture
from qcompile.capture.check import check_capture
from qcompile.errors import UnsupportedOpError
from qcompile.exec import float_exec
from qcompile.exec.torch_exec import TorchGraph
from tests.capture.canonical import canonical

FEED_FORWARD = (
    "deeplabv3_mnv2_voc",
    "fastestdet_coco",
    "mlperf_tiny_ad_autoencoder",
    "mlperf_tiny_dscnn_kws",
    "mlperf_tiny_mobilenetv1_025_vww",
    "mlperf_tiny_resnet8_cifar10",
    "mobilenetv1_025_128_imagenet_dq",
    "mobilenetv2_tf_imagenet",
    "resnet20_cifar10",
    "resnet20_cifar10_bn",
    "resnet20_cifar10_dynamo",
    "resnet32_cifar10",
    "resnet56_cifar10",
    "squeezenet1_1_imagenet",
    "tiny_darknet_imagenet",
    "ultraface_rfb320",
)
TAILS = {"fastestdet_coco": {"unary", "transpose", "softmax", "concat"}, "ultraface_rfb320": {"softmax"}}
_INTEGER_READY = {
    "conv2d",
    "linear",
    "add",
    "mul",
    "sub",
    "clip",
    "prelu",
    "unary",
    "max_pool",
    "avg_pool",
    "reduce_mean",
    "concat",
    "reshape",
    "transpose",
    "slice",
    "pad",
    "resize",
}


@pytest.mark.parametrize("name", FEED_FORWARD)
def test_capture_and_canonical_form(models: Path, name: str) -> None:
    path = models / f"{name}.onnx"
    graph = capture(path)
    assert check_capture(graph, path) < 1e-5
    simple = canonical(graph)
    assert {node.op for node in simple.nodes} <= _INTEGER_READY
    assert ({node.op for node in simple.tail.nodes} if simple.tail else None) == TAILS.get(name)
    rng = np.random.default_rng(1)
    x = {port.name: rng.uniform(-1, 1, (1, *port.type.sample)).astype(np.float32) for port in graph.inputs}
    expected, actual = float_exec.run(graph, x), float_exec.run(simple, x)
    in_torch = TorchGraph(simple).run(x, with_tail=True)
    assert list(expected) == list(actual) == list(in_torch)
    for key, y in expected.items():
        limit = 1e-4 * float(np.abs(y).max())
        np.testing.assert_allclose(actual[key], y, rtol=0, atol=limit)
        np.testing.assert_allclose(in_torch[key].numpy(), y, rtol=0, atol=limit)


@pytest.mark.parametrize("name", ["minilm_l6_stsb", "stories260k", "babyllama105"])
def test_transformers_are_refused_with_one_message(models: Path, name: str) -> None:
    with pytest.raises(UnsupportedOpError) as caught:
        capture(models / f"{name}.onnx")
    text = str(caught.value)
    assert "it holds INT64; inputs must be FLOAT" in text
    assert "MatMul: a product of two computed values (attention) is not supported" in text
    assert "Gather: input 0 is a constant" in text
    assert ("LayerNormalization" in text) == (name == "minilm_l6_stsb")
