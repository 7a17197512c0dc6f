"""Three networks as artifacts, and building what is exported from them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from exported import NETWORKS, Make
from torch import nn

from qcompile import api, artifact
from qcompile.artifact import Artifact

MODELS = Path(__file__).parents[2] / "models"


def _autoencoder(folder: Path) -> None:
    """Linear layers at 5 and 6 bits, with odd sizes, and more than one sample to test."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(37, 19), nn.ReLU(), nn.Linear(19, 5), nn.Tanh(), nn.Linear(5, 37)).eval()
    api.compile(
        model, example=torch.zeros(1, 37), target="c", uniform="w5a6", out=folder,
        measure=False,
    )  # fmt: skip


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """Network → artifact of portable C."""
    folder = tmp_path_factory.mktemp("export")
    for name in NETWORKS[:2]:
        source = MODELS / name
        api.compile(
            source / f"{name}.onnx", target="c", uniform="w8a8", calib=source / "calib.npz", samples=32,
            out=folder / f"{name}.qc", measure=False,
        )  # fmt: skip
    _autoencoder(folder / "autoencoder.qc")
    return {name: artifact.load(folder / f"{name}.qc") for name in NETWORKS}


@pytest.fixture
def make() -> Make:
    """make(folder, "test", CC="gcc") in an exported folder."""

    def run(folder: Path, *goals: str, **variables: str) -> subprocess.CompletedProcess[str]:
        settings = [f"{name}={value}" for name, value in variables.items()]
        return subprocess.run(
            ["make", "-s", "-C", str(folder), *goals, *settings], capture_output=True, text=True, check=False
        )

    return run
