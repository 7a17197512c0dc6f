"""The building blocks of our example networks, and the two networks that `train_digits` trains."""

import torch
from torch import nn


class ConvNorm(nn.Sequential):
    """A convolution without bias, batch normalisation, and an activation if one is given."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int = 3,
        stride: int = 1,
        groups: int = 1,
        act: nn.Module | None = None,
    ) -> None:
        conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(c_out), *([act] if act is not None else []))


class Residual(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 projection where the shape changes."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = ConvNorm(c_in, c_out, stride=stride, act=nn.ReLU())
        self.conv2 = ConvNorm(c_out, c_out)
        same = stride == 1 and c_in == c_out
        self.shortcut = nn.Identity() if same else ConvNorm(c_in, c_out, kernel=1, stride=stride)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.conv2(self.conv1(x)) + self.shortcut(x))


class Separable(nn.Sequential):
    """A depthwise 3x3 convolution followed by a pointwise one, as in MobileNetV1."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1) -> None:
        super().__init__(
            ConvNorm(c_in, c_in, stride=stride, groups=c_in, act=nn.ReLU6()),
            ConvNorm(c_in, c_out, kernel=1, act=nn.ReLU6()),
        )


class InvertedResidual(nn.Module):
    """Expand, depthwise 3x3, linear projection, as in MobileNetV2; a shortcut where the shape stays."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1, expand: int = 4) -> None:
        super().__init__()
        wide = c_in * expand
        self.expand = ConvNorm(c_in, wide, kernel=1, act=nn.ReLU6())
        self.depthwise = ConvNorm(wide, wide, stride=stride, groups=wide, act=nn.ReLU6())
        self.project = ConvNorm(wide, c_out, kernel=1)
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class DigitsResNet(nn.Module):
    """A residual network for one-channel images of 16x16 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(1, 16, act=nn.ReLU())
        self.block1 = Residual(16, 16)
        self.block2 = Residual(16, 32, stride=2)
        self.block3 = Residual(32, 32)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.block3(self.block2(self.block1(self.stem(x))))
        return self.fc(self.pool(x).flatten(1))


class DigitsMobileNet(nn.Module):
    """Separable convolutions and inverted residuals for one-channel images of 16x16 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(1, 16, act=nn.ReLU6())
        self.separable = Separable(16, 24)
        self.block1 = InvertedResidual(24, 32, stride=2)
        self.block2 = InvertedResidual(32, 32)
        self.block3 = InvertedResidual(32, 32)
        self.head = ConvNorm(32, 96, kernel=1, act=nn.Hardswish())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(96, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.block3(self.block2(self.block1(self.separable(self.stem(x)))))
        return self.fc(self.pool(self.head(x)).flatten(1))


NETS: dict[str, type[nn.Module]] = {"resnet": DigitsResNet, "mobilenet": DigitsMobileNet}
