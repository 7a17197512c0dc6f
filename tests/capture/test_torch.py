"""Captures of torch modules, and their equality with captures of the same networks from ONNX."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.nets import NETS
from models.zoo import ZOO, Example, build
from qcompile.capture import capture
from qcompile.capture.check import check_capture
from qcompile.capture.torch_fx import capture_fx
from qcompile.errors import CaptureError, UnsupportedOpError
from qcompile.ir import Graph
from tests.capture.canonical import canonical, content


def exported(module: nn.Module, example: torch.Tensor) -> onnx.ModelProto:
    """The module as ONNX, batch normalisations kept."""
    file = io.BytesIO()
    torch.onnx.export(
        module,
        (example,),
        file,
        dynamo=False,
        opset_version=17,
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
        input_names=["input"],
        dynamic_axes={"input": {0: "N"}},
    )
    return onnx.load_from_string(file.getvalue())


@pytest.fixture(scope="module", params=ZOO)
def example(request: pytest.FixtureRequest) -> Example:
    return build(request.param)


def test_zoo_equals_torch(example: Example) -> None:
    graph = capture(example.module, example=example.batch(2))
    assert check_capture(graph, example.module) < 1e-5


def test_zoo_from_torch_and_from_onnx_is_one_graph(example: Example) -> None:
    x = example.batch(2)
    from_torch = content(canonical(capture(example.module, example=x)))
    assert content(canonical(capture(exported(example.module, x)))) == from_torch
    assert content(canonical(capture(torch.fx.symbolic_trace(example.module), example=x))) == from_torch


def test_exported_program_with_a_symbolic_batch(example: Example) -> None:
    program = torch.export.export(
        example.module, (example.batch(3),), dynamic_shapes=({0: torch.export.Dim("N", max=64)},)
    )
    graph = capture(program)
    expected = capture(example.module, example=example.batch(1))
    assert content(canonical(graph)) == content(canonical(expected))


@pytest.mark.parametrize("name", NETS)
def test_shipped_networks(name: str) -> None:
    folder = Path(__file__).resolve().parents[2] / "models" / f"digits_{name}"
    with np.load(folder / f"digits_{name}_state.npz") as file:
        state = {key: torch.from_numpy(np.array(file[key])) for key in file.files}
    module = NETS[name]()
    module.load_state_dict(state, strict=False)
    path = folder / f"digits_{name}.onnx"
    from_onnx = capture(path)
    assert check_capture(from_onnx, path) < 1e-5
    from_torch = capture(module, example=torch.zeros(1, 1, 16, 16))
    assert content(canonical(from_onnx)) == content(canonical(from_torch))


class _Block(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.added = c_out - c_in

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.added:
            half = self.added // 2
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, half), "constant", 0)
        return F.relu(y + x)


class _ResNet(nn.Module):
    """The CIFAR-10 network of He et al. with parameter-free shortcuts."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        sizes = [(16, 16, 1), (16, 32, 2), (32, 64, 2)]
        for i, (c_in, c_out, stride) in enumerate(sizes, start=1):
            rest = [_Block(c_out, c_out, 1) for _ in range(blocks - 1)]
            setattr(self, f"layer{i}", nn.Sequential(_Block(c_in, c_out, stride), *rest))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(F.avg_pool2d(x, x.shape[3]).view(x.shape[0], -1))


def test_resnet20_from_torch_and_from_onnx_is_one_graph(models: Path) -> None:
    with np.load(models / "resnet20_cifar10_state.npz") as file:
        state = {key: torch.from_numpy(np.array(file[key])) for key in file.files}
    module = _ResNet(3)
    missing, unexpected = module.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    x = torch.zeros(1, 3, 32, 32)
    from_torch = canonical(capture(module, example=x))
    from_onnx = canonical(capture(models / "resnet20_cifar10_bn.onnx"))
    assert content(from_torch) == content(from_onnx)
    assert content(canonical(capture_fx(module, x))) == content(from_onnx)


def shapes(graph: Graph) -> list[Any]:
    return [(n.name, n.op, n.inputs, n.attrs, n.type) for n in graph.nodes]


def test_three_exports_of_resnet20_have_one_structure(models: Path) -> None:
    names = ("resnet20_cifar10", "resnet20_cifar10_bn", "resnet20_cifar10_dynamo")
    first, second, third = (canonical(capture(models / f"{name}.onnx")) for name in names)
    assert shapes(second) == shapes(third)
    assert [(n.op, n.attrs, n.type) for n in first.nodes] == [(n.op, n.attrs, n.type) for n in second.nodes]


def run(function: Any, *shape: int) -> float:
    """Capture a function of one tensor with all three routes, and compare each with torch."""

    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return function(x)

    module, x = Net(), torch.zeros(1, *shape)
    graphs = [capture(module, example=x), capture(torch.fx.symbolic_trace(module), example=x)]
    return max(check_capture(graph, module) for graph in graphs)


FUNCTIONS: dict[str, Any] = {
    "slices": lambda x: x[:, 1:3, ::2, -4:],
    "one channel": lambda x: x[:, 2].unsqueeze(1),
    "ellipsis": lambda x: x[..., 1:],
    "chunks": lambda x: torch.cat([x.chunk(2, 1)[1] * 2, x.chunk(2, 1)[0]], 1),
    "split": lambda x: torch.cat(x.split([1, 3], dim=1)[::-1], dim=1),
    "permute": lambda x: x.permute(0, 2, 3, 1).transpose(1, 2),
    "view": lambda x: x.view(x.size(0), 2, -1).mean(dim=(2,)),
    "flatten": lambda x: torch.flatten(x, 1).softmax(dim=1),
    "pad": lambda x: F.pad(x, (1, 2, 0, 1), value=0.5),
    "interpolate": lambda x: F.interpolate(x, scale_factor=2, mode="nearest"),
    "interpolate to size": lambda x: F.interpolate(x, size=(5, 13), mode="nearest"),
    "arithmetic": lambda x: (1 - x) / 3 + 0.5 * x - x * x,
    "alpha": lambda x: torch.add(x, torch.tanh(x), alpha=0.5),
    "clamps": lambda x: x.clamp(min=-0.5).clamp(max=0.25),
    "pools": lambda x: F.max_pool2d(x, 3, 2, 1) + F.avg_pool2d(x, 3, 2, 1),
    "adaptive pool": lambda x: F.adaptive_avg_pool2d(x, (2, 4)),
    "shuffles": lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2),
    "stack": lambda x: torch.stack([x, x.abs()], dim=2).sum(dim=2),
    "expand": lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, 3, 5),
    "power": lambda x: x**2 + x.pow(3),
    "elementwise": lambda x: F.silu(x) + F.gelu(x) + F.elu(x) + F.mish(x) + F.hardswish(x) + F.softplus(x),
    "more elementwise": lambda x: F.selu(x) + F.celu(x) + F.softsign(x) + F.hardsigmoid(x) + F.relu6(x) + F.hardtanh(x),
    "rounded": lambda x: torch.floor(x) + torch.exp(x).reciprocal() + torch.sqrt(x.abs()),
    "two outputs": lambda x: (x.relu(), x.sigmoid()),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str) -> None:
    assert run(FUNCTIONS[name], 4, 8, 8) < 1e-5


def test_unsupported_functions_are_listed_at_once() -> None:
    with pytest.raises(UnsupportedOpError) as caught:
        run(lambda x: torch.cumsum(x, 1) + torch.fft.fft(x).real + x.flip(1), 4, 8, 8)
    assert "cumsum: the operator is not supported" in str(caught.value)
    assert "flip: the operator is not supported" in str(caught.value)
    assert "3 nodes" in str(caught.value) or "4 nodes" in str(caught.value)


def test_a_module_needs_an_example() -> None:
    with pytest.raises(CaptureError, match="needs an example input"):
        capture(nn.ReLU())


def test_other_objects() -> None:
    with pytest.raises(CaptureError, match="cannot capture a dict"):
        capture({})


def test_control_flow_on_values() -> None:
    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(CaptureError, match=r"torch\.export cannot follow Net"):
        capture(Net(), example=torch.zeros(1, 3))
    with pytest.raises(CaptureError, match=r"torch\.fx cannot trace Net"):
        capture_fx(Net(), torch.zeros(1, 3))


def test_weights_that_are_not_finite() -> None:
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight[0, 0] = torch.inf
    with pytest.raises(CaptureError, match="tensor 'weight' holds NaN or infinity"):
        capture(layer, example=torch.zeros(1, 3))


def test_programs_of_a_fixed_batch() -> None:
    program = torch.export.export(nn.ReLU(), (torch.zeros(4, 3),))
    with pytest.raises(CaptureError, match="exported for a batch of 4"):
        capture(program)


def test_the_mode_of_the_module_is_restored() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Dropout(), nn.BatchNorm1d(3)).train()
    graph = capture(module, example=torch.zeros(1, 3))
    assert module.training
    assert module[1].training
    assert check_capture(graph, module) < 1e-5
