"""How many products may be summed in int16 is proved from the weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from passes.lower.plan_memory import plan_program
from qcompile.ir import BATCH, INT, GraphBuilder, Grid, TensorType
from targets._tvm.context import Constant, Context
from targets._tvm.kernels.conv_int16 import Int16Conv, pairs_fit
from targets._tvm.neon import Int16
from targets.aarch64.target import AARCH64_NEON


def context(weights: np.ndarray, act: int, offset: int) -> Context:
    """A 1×1 convolution of a 2×2 image."""
    b, channels = GraphBuilder("conv", INT), weights.shape[1]
    image = TensorType((BATCH, channels, 2, 2), f"u{act}")
    b.input("x", image, Grid(1.0, 0, f"u{act}"))
    x = b.add("reshape", ["x"], name="image", attrs={"shape": image.shape})
    y = b.add("conv2d", [x], name="conv", consts={"w": weights[:, :, None, None].astype(np.int8)})
    b.output("y", y, Grid(1.0, 0, "i32"))
    program = plan_program(b.build(), replace(AARCH64_NEON, channel_block=16))
    kernel = next(k for k in program.kernels if k.anchor.op == "conv2d")
    return Context(kernel, program, Int16(offset=offset))


@pytest.mark.parametrize(
    ("channels", "weight", "act", "offset", "steps"),
    [
        (64, 127, 8, 128, 1),  # 2 · 127 · 128 = 32512
        (64, 63, 8, 128, 2),
        (64, 127, 7, 0, 1),
        (64, 7, 4, 0, 16),  # all of a pixel
        (16 * 39, 7, 4, 0, 156),  # 156 steps · 2 products · 7 · 15 = 32760
        (16 * 40, 7, 4, 0, 80),  # 160 steps would reach 33600
        (20, 7, 4, 0, 4),  # one whole chunk, and a tail that has windows of its own
    ],
)
def test_windows_hold_what_fits(channels: int, weight: int, act: int, offset: int, steps: int) -> None:
    weights = np.full((4, channels), weight)
    weights[1] *= -1
    assert Int16Conv(context(weights, act, offset)).window == steps


def test_one_large_weight_in_one_place_shortens_the_windows() -> None:
    weights = np.ones((4, 640))
    assert Int16Conv(context(weights, 8, 128)).window == 80  # 80 · 2 · 128 = 20480
    weights[2, 300:340] = 100
    conv = Int16Conv(context(weights, 8, 128))
    assert conv.window == 1
    assert isinstance(conv._pack(False), Constant)


def test_products_that_do_not_fit_are_refused() -> None:
    weights = np.zeros((4, 16))
    weights[0, 0] = -127
    assert pairs_fit(context(weights, 8, 128))
    weights[0, 0] = -128
    assert not pairs_fit(context(weights, 8, 128))
    assert pairs_fit(context(weights, 7, 0))
