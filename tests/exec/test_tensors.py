"""Torch helpers of the analyses beside torch's own operators."""

import numpy as np
import pytest
import torch

from qcompile.exec.tensors import fake_quantize, image_order
from qcompile.ir import Grid, int_range


@pytest.mark.parametrize(("dtype", "zero"), [("u8", 0), ("u8", 131), ("u5", 7), ("u4", 15), ("i8", -3)])
@pytest.mark.parametrize("scale", [0.0173, 1 / 3, 2.0**-7, 1e-6, 517.3])
def test_fake_quantisation_is_torchs(dtype: str, zero: int, scale: float) -> None:
    lo, hi = int_range(dtype)
    ends = torch.arange(2 * lo - 3, 2 * hi + 4, 0.5) * scale
    x = torch.cat([ends, torch.from_numpy(np.random.default_rng(0).normal(0, 300 * scale, 4096)).float()])
    wanted = torch.fake_quantize_per_tensor_affine(x, scale, zero, lo, hi)
    kept = x.clone()
    assert torch.equal(fake_quantize(x, Grid(scale, zero, dtype)), wanted)
    assert torch.equal(x, kept), "the input is not written"
    slopes = torch.linspace(-1, 1, len(x))
    gradients = []
    for rounded in (
        lambda y: fake_quantize(y, Grid(scale, zero, dtype)),
        lambda y: torch.fake_quantize_per_tensor_affine(y, scale, zero, lo, hi),
    ):
        traced = kept.clone().requires_grad_()
        found = rounded(traced)
        assert torch.equal(found.detach(), wanted)
        found.backward(slopes)
        gradients.append(traced.grad)
    assert torch.equal(gradients[0], gradients[1])


def test_scales_are_those_of_single_precision() -> None:
    """Torch divides by the scale as a float32; on ties one last place decides."""
    for scale in np.random.default_rng(1).uniform(1e-3, 1, 200):
        x = torch.from_numpy((np.arange(-1, 300, 0.5) * scale).astype(np.float32))
        wanted = torch.fake_quantize_per_tensor_affine(x, float(scale), 3, 0, 255)
        assert torch.equal(fake_quantize(x, Grid(float(scale), 3, "u8")), wanted)


def test_gradients_pass_inside_the_range() -> None:
    x = torch.tensor([-9.0, 0.4, 99.0], requires_grad=True)
    fake_quantize(x, Grid(1.0, 0, "u4")).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 0]


def test_images_keep_their_values_in_another_order() -> None:
    x = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    y = image_order(x)
    assert torch.equal(x, y)
    assert y.stride(1) == 1
    assert image_order(x[0]) is not None
    assert image_order(x[0, 0]).stride() == (5, 1)
