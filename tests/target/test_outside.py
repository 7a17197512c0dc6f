"""A target from another package: found through its entry point, compiled for, run, verified."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "models" / "digits_resnet"

MODULE = '''
"""A processor with 128-bit vectors and no dot product that anybody has heard of."""

import platform

from qcompile.target.model import Target, host_architecture
from targets._tvm.cpu import CpuBackend, direct_variant, generic_variant
from targets._tvm.isa import PortableIsa

# LLVM shifts the vectors of the oldest x86-64 processors with the help of floating-point conversions.
CORE = {"x86_64": {"mcpu": "haswell"}}

MY_CHIP = Target(
    name="my-chip",
    summary="the documentation's example",
    backend="my_chip:MyChip",
    channel_block=4,
    architecture=host_architecture(),
)


class MyChip(CpuBackend):
    def __init__(self, target):
        isa = PortableIsa(lanes=4)
        options = {"mtriple": f"{platform.machine()}-unknown-linux-gnu", **CORE.get(platform.machine(), {})}
        super().__init__(target, options, [direct_variant("portable", isa), generic_variant(isa)])
'''


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """The environment of a process in which the package is installed."""
    site = tmp_path / "site"
    described = site / "my_chip-1.0.dist-info"
    described.mkdir(parents=True)
    (site / "my_chip.py").write_text(MODULE)
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: my-chip\nVersion: 1.0\n")
    (described / "entry_points.txt").write_text("[qcompile.targets]\nmy-chip = my_chip:MY_CHIP\n")
    return {**os.environ, "PYTHONPATH": os.pathsep.join((str(site), str(ROOT)))}


def qcompile(environment: dict[str, str], folder: Path, *arguments: str) -> Any:
    command = [sys.executable, "-m", "qcompile", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_a_target_of_another_package_works_like_ours(installed: dict[str, str], tmp_path: Path) -> None:
    listed = qcompile(installed, tmp_path, "targets")["targets"]
    assert next(t for t in listed if t["name"] == "my-chip")["summary"] == "the documentation's example"
    made = qcompile(
        installed, tmp_path, "compile", str(DIGITS / "digits_resnet.onnx"), "--target", "my-chip",
        "--uniform", "w4a8", "--samples", "4", "-o", "model.qc",
    )  # fmt: skip
    assert made["bits"]
    found = qcompile(installed, tmp_path, "verify", "model.qc")
    assert (found["differing_integers"], found["float_operations"]) == (0, 0)
    manifest = json.loads((tmp_path / "model.qc" / "manifest.json").read_text())
    assert "portable" in json.dumps(manifest)
