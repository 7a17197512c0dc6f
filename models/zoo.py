"""Tiny untrained networks for the tests: one for each structure that the compiler has to understand.

`build("fire")` gives a module in evaluation mode with seeded random weights, and the shape of its input
without the batch. Batch normalisations get random statistics too, so that folding them is a real test,
and the last layer is scaled until different inputs give clearly different outputs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from models.nets import ConvNorm, InvertedResidual, Residual, Separable


@dataclass(frozen=True)
class Example:
    """A network of the zoo with the shape of one input sample."""

    name: str
    module: nn.Module
    input_shape: tuple[int, ...]

    def batch(self, n: int, seed: int = 0) -> torch.Tensor:
        """Return `n` random input samples in [0, 1), each channel of each sample with its own brightness."""
        rng = torch.Generator().manual_seed(seed)
        brightness = torch.rand(n, self.input_shape[0], *(1 for _ in self.input_shape[1:]), generator=rng)
        return brightness * torch.rand(n, *self.input_shape, generator=rng)


class Classifier(nn.Sequential):
    """The given layers, global average pooling and a linear layer."""

    def __init__(self, *layers: nn.Module, channels: int, classes: int = 10) -> None:
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


class Fire(nn.Module):
    """Squeeze to few channels, expand by a 1x1 and a 3x3 convolution, concatenate (SqueezeNet)."""

    def __init__(self, c_in: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(c_in, squeeze, 1)
        self.expand1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.expand1(x)), F.relu(self.expand3(x))], dim=1)


class SqueezeExcite(nn.Module):
    """Scale each channel by a sigmoid gate computed from the channels' means."""

    def __init__(self, channels: int, squeeze: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, squeeze, 1)
        self.expand = nn.Conv2d(squeeze, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(self.expand(F.relu(self.reduce(self.pool(x)))))


class ChannelShuffle(nn.Module):
    """Interleave the channels of the groups by reshape, transpose, reshape (ShuffleNet)."""

    def __init__(self, groups: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.groups, self.shape = groups, shape

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        c, h, w = self.shape
        return x.reshape(-1, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(-1, c, h, w)


def plain() -> nn.Module:
    return Classifier(
        ConvNorm(3, 8, act=nn.ReLU()),
        nn.MaxPool2d(2),
        ConvNorm(8, 16, act=nn.ReLU()),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        channels=16,
    )


def residual() -> nn.Module:
    return Classifier(ConvNorm(3, 8, act=nn.ReLU()), Residual(8, 8), Residual(8, 16, stride=2), channels=16)


def inverted_residual() -> nn.Module:
    return Classifier(
        ConvNorm(3, 8, stride=2, act=nn.ReLU6()),
        Separable(8, 8),
        InvertedResidual(8, 8),
        InvertedResidual(8, 16, stride=2),
        ConvNorm(16, 24, kernel=1, act=nn.Hardswish()),
        channels=24,
    )


def fire() -> nn.Module:
    return Classifier(
        ConvNorm(3, 16, act=nn.ReLU()),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        Fire(16, 4, 8),
        Fire(16, 8, 12),
        channels=24,
    )


def squeeze_excite() -> nn.Module:
    return Classifier(
        ConvNorm(3, 16, act=nn.SiLU()), SqueezeExcite(16, 4), ConvNorm(16, 16, act=nn.ReLU()), channels=16
    )


def leaky() -> nn.Module:
    return Classifier(
        ConvNorm(3, 8, act=nn.LeakyReLU(0.1)),
        ConvNorm(8, 16, stride=2, act=nn.PReLU(16)),
        nn.AvgPool2d(2),
        ConvNorm(16, 16, act=nn.PReLU()),
        channels=16,
    )


def shuffle() -> nn.Module:
    return Classifier(
        ConvNorm(3, 16, act=nn.ReLU()),
        ConvNorm(16, 16, kernel=1, groups=4, act=nn.ReLU()),
        ChannelShuffle(4, (16, 16, 16)),
        ConvNorm(16, 16, groups=16),
        ConvNorm(16, 16, kernel=1, groups=4, act=nn.ReLU()),
        channels=16,
    )


def dilated() -> nn.Module:
    return Classifier(
        nn.ZeroPad2d((0, 1, 0, 1)),  # TensorFlow's "same" padding of a stride-2 convolution: right and bottom only
        nn.Conv2d(3, 8, 3, stride=2),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=2, dilation=2),
        nn.ReLU(),
        nn.Conv2d(8, 16, (1, 5), padding=(0, 2)),
        nn.ReLU(),
        nn.Conv2d(16, 16, (3, 1), stride=(2, 1), padding=(1, 0), dilation=(1, 3)),
        nn.ReLU(),
        channels=16,
    )


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(20, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4)
    )


def dense_softmax() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(4),
        nn.Flatten(),
        nn.Linear(8 * 4 * 4, 32),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(32, 10),
        nn.Softmax(dim=1),
    )


IMAGE = (3, 16, 16)
ZOO: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "plain": (plain, IMAGE),
    "residual": (residual, IMAGE),
    "inverted_residual": (inverted_residual, IMAGE),
    "fire": (fire, IMAGE),
    "squeeze_excite": (squeeze_excite, IMAGE),
    "leaky": (leaky, IMAGE),
    "shuffle": (shuffle, IMAGE),
    "dilated": (dilated, IMAGE),
    "mlp": (mlp, (20,)),
    "dense_softmax": (dense_softmax, IMAGE),
}


def build(name: str, seed: int = 0) -> Example:
    """Build a network of the zoo; the same name and seed give the same weights."""
    builder, shape = ZOO[name]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        example = Example(name, builder().eval(), shape)
        for layer in example.module.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight)
            elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                nn.init.uniform_(layer.weight, 0.5, 1.5)
                nn.init.normal_(layer.bias, std=0.2)
                nn.init.normal_(layer.running_mean, std=0.2)
                nn.init.uniform_(layer.running_var, 0.5, 1.5)
            elif isinstance(layer, nn.PReLU):
                nn.init.uniform_(layer.weight, 0.05, 0.4)
        _spread_outputs(example)
    return example


def _spread_outputs(example: Example) -> None:
    """Scale and shift the last linear layer: each output gets mean 0 and deviation 1 over the samples."""
    last = [layer for layer in example.module.modules() if isinstance(layer, nn.Linear)][-1]
    outputs: list[torch.Tensor] = []
    hook = last.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    example.module(example.batch(64))
    hook.remove()
    deviation, mean = torch.std_mean(outputs[0], dim=0)
    last.weight /= deviation[:, None]
    last.bias -= mean
    last.bias /= deviation
