"""On an NVIDIA GPU: the networks of the pack, bit for bit, and plans that keep a latency."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_pack_networks import LARGE, NETWORKS, PACK, data, samples_for

from qcompile import api
from qcompile.pm.registry import gpu_features

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not gpu_features(), reason="no NVIDIA GPU on this machine")]
needs_pack = pytest.mark.skipif(
    not (PACK / "load.py").exists(), reason="the evaluation pack ../shared/data is not here"
)
DIGITS = Path(__file__).parents[2] / "models" / "digits_resnet"


@needs_pack
@pytest.mark.parametrize("bits", ["w8a8", "w4a8", "w4a4"])
@pytest.mark.parametrize("network", NETWORKS)
def test_artifact_equals_the_reference(network: str, bits: str, tmp_path: Path) -> None:
    calib = data(network, "calib", 16)
    if calib is not None:
        calib.pop("labels", None)
    result = api.compile(
        PACK / "models" / f"{network}.onnx", target="cuda", uniform=bits, calib=calib, out=tmp_path / "model.qc",
        measure=False, rounding="nearest", samples=None if calib is not None else 8,
    )  # fmt: skip
    count = 4 if network in LARGE else 64
    inputs = samples_for(network, result.artifact, count)
    found = api.verify(result.artifact, inputs)
    assert (found["differing_integers"], found["float_operations"]) == (0, 0), found["found"]


def test_plan_keeps_its_latency(tmp_path: Path) -> None:
    given = {"target": "cuda", "calib": DIGITS / "calib.npz"}
    uniform = api.compile(DIGITS / "digits_resnet.onnx", uniform="w8a8", out=tmp_path / "uniform.qc", **given)
    assert uniform.measured_ms is not None
    budget = 1.05 * uniform.measured_ms
    plan = api.compile(DIGITS / "digits_resnet.onnx", latency=budget * 1e-3, out=tmp_path / "plan.qc", **given)
    assert plan.measured_ms is not None and plan.measured_ms <= budget
    assert "roofline" not in " ".join(plan.warnings)
