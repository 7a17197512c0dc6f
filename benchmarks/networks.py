"""ImageNet networks for timing, untrained: latency depends on shapes, not on what the weights know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

from models.nets import ConvNorm, InvertedResidual, Residual

IMAGE = (3, 224, 224)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with four times the channels at the end, and a shortcut, as in ResNet-50."""

    def __init__(self, c_in: int, c_mid: int, stride: int = 1) -> None:
        super().__init__()
        c_out = 4 * c_mid
        self.reduce = ConvNorm(c_in, c_mid, kernel=1, act=nn.ReLU())
        self.conv = ConvNorm(c_mid, c_mid, stride=stride, act=nn.ReLU())
        self.expand = ConvNorm(c_mid, c_out, kernel=1)
        same = stride == 1 and c_in == c_out
        self.shortcut = nn.Identity() if same else ConvNorm(c_in, c_out, kernel=1, stride=stride)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.relu(self.expand(self.conv(self.reduce(x))) + self.shortcut(x))
        return y


def _classifier(*layers: nn.Module, channels: int) -> nn.Sequential:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))


def _resnet(block: Callable[[int, int, int], nn.Module], growth: int, depths: Sequence[int]) -> nn.Sequential:
    """A stem and four stages of blocks; a block of width w gives `growth`·w channels."""
    layers: list[nn.Module] = [ConvNorm(3, 64, kernel=7, stride=2, act=nn.ReLU()), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for stage, depth in enumerate(depths):
        width = 64 << stage
        for index in range(depth):
            layers.append(block(channels, width, 2 if stage and not index else 1))
            channels = growth * width
    return _classifier(*layers, channels=channels)


def resnet18() -> nn.Sequential:
    """ResNet-18: 1.8 G multiply-adds."""
    return _resnet(Residual, 1, (2, 2, 2, 2))


def resnet50() -> nn.Sequential:
    """ResNet-50, the stride in the 3x3 convolution: 4.1 G multiply-adds."""
    return _resnet(Bottleneck, 4, (3, 4, 6, 3))


def mobilenet_v2() -> nn.Sequential:
    """MobileNetV2 1.0: 0.3 G multiply-adds."""
    stages = ((24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))  # channels, blocks, stride
    steps = [(c, stride if not i else 1) for c, blocks, stride in stages for i in range(blocks)]
    widths = [16, *(c for c, _ in steps)]
    first = [ConvNorm(32, 32, groups=32, act=nn.ReLU6()), ConvNorm(32, 16, kernel=1)]
    blocks = [InvertedResidual(a, b, stride, 6) for (a, b), (_, stride) in zip(pairwise(widths), steps, strict=True)]
    head = ConvNorm(320, 1280, kernel=1, act=nn.ReLU6())
    return _classifier(ConvNorm(3, 32, stride=2, act=nn.ReLU6()), *first, *blocks, head, channels=1280)


NETWORKS: dict[str, Callable[[], nn.Sequential]] = {
    "resnet18": resnet18, "resnet50": resnet50, "mobilenetv2": mobilenet_v2
}  # fmt: skip


def build(name: str, seed: int = 0) -> nn.Sequential:
    """A network in evaluation mode with seeded weights; equal arguments give equal weights.

    The batch normalisations take the statistics of a batch of noise, so that activations stay near unit variance.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        network = NETWORKS[name]()
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(layer, nn.BatchNorm2d):
                layer.momentum = 1.0
        network.train()(torch.randn(2, *IMAGE))
    return network.eval()


def export(name: str, path: Path) -> None:
    """Write a network as ONNX, input `input` of (N, 3, 224, 224), batch normalisations kept."""
    torch.onnx.export(
        build(name), (torch.zeros(1, *IMAGE),), path, dynamo=False, opset_version=17,
        training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False, input_names=["input"],
        output_names=["logits"], dynamic_axes={"input": {0: "N"}, "logits": {0: "N"}},
    )  # fmt: skip
