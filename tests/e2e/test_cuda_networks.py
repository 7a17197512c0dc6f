"""Every feed-forward network of the pack, compiled for GPUs on a machine without one: the PTX of every kernel has no
floating-point instruction, the artifact loads, and running it says what is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_pack_networks import NETWORKS, PACK

from qcompile import api, artifact
from qcompile.errors import DeviceError, TargetError
from qcompile.pm.registry import gpu_features
from qcompile.verification import lower_again
from targets.cuda import build, executable
from targets.cuda.target import ARCHITECTURES

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "models" / "digits_resnet"


def has_compiler() -> bool:
    try:
        build.find_compiler()
    except TargetError:
        return False
    return True


pytestmark = pytest.mark.skipif(not has_compiler(), reason="no CUDA compiler on this machine")
needs_pack = pytest.mark.skipif(
    not (PACK / "load.py").exists(), reason="the evaluation pack ../shared/data is not here"
)
without_gpu = pytest.mark.skipif(bool(gpu_features()), reason="this machine has a GPU")


def check(model: Path, target: str, folder: Path) -> artifact.Artifact:
    """Build it; what was built has machine code of the architecture and no floating point."""
    out = folder / "model.qc"
    # What the weights are does not change what is compiled.
    result = api.compile(model, target=target, uniform="w8a8", out=out, samples=2, measure=False, rounding="nearest")
    loaded = result.artifact
    assert loaded.backend.float_operations(loaded.library, lower_again(loaded)) == []
    described = json.loads((loaded.library / executable.DESCRIPTION).read_text())
    images = described["images"]
    defined = {name for image in images for name in image["kernels"]}
    assert {launch[0] for launch in described["launches"]} <= defined
    wanted = ARCHITECTURES if target == "cuda" else (target.removeprefix("cuda:"),)
    assert {image["architecture"] for image in images} == set(wanted)
    binary = (loaded.library / executable.BINARY).read_bytes()
    for image in images:
        code, listing = (binary[start : start + size] for start, size in (image["code"], image["ptx"]))
        assert code.startswith(b"\x7fELF") and f".target {image['architecture']}".encode() in listing
    return loaded


@needs_pack
@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_builds(network: str, tmp_path: Path) -> None:
    check(PACK / "models" / f"{network}.onnx", "cuda:sm_80", tmp_path)


@pytest.mark.parametrize("target", ["cuda", *(f"cuda:{architecture}" for architecture in ARCHITECTURES)])
def test_every_architecture_builds(target: str, tmp_path: Path) -> None:
    loaded = check(DIGITS / "digits_resnet.onnx", target, tmp_path)
    if not gpu_features():
        (port,) = loaded.graph.inputs
        with pytest.raises(DeviceError, match=r"no NVIDIA driver|no GPU"):
            loaded.run({port.name: np.zeros((1, *port.type.sample), dtype=np.float32)})


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "qcompile", *map(str, arguments)],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip


@without_gpu
def test_plan_for_a_latency_without_a_gpu(tmp_path: Path) -> None:
    """The command of the front page, on a machine without a GPU: an artifact, and clear words about its figures."""
    out = tmp_path / "model.qc"
    made = command(
        DIGITS / "digits_resnet.onnx", "--target", "cuda:sm_80", "--latency", "1ms", "--calib", DIGITS / "calib.npz",
        "--samples", "32", "--rounding", "nearest", "-o", out,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert "nothing was measured" in made.stderr and "estimated, not measured" in made.stdout + made.stderr
    loaded = artifact.load(out)
    assert loaded.measurements() == {} and loaded.manifest.record.predicted_seconds is not None
    explained = command("explain", out)
    assert explained.returncode == 0 and "not measured" in explained.stderr + explained.stdout
    for arguments in (("bench", out), ("run", out, "--data", DIGITS / "eval.npz"), ("verify", out)):
        ran = command(*arguments)
        assert ran.returncode == DeviceError.exit_code
        assert "no NVIDIA driver" in ran.stderr and "hint: run the artifact on a machine" in ran.stderr
