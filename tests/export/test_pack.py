"""The promised size, on a real network of the evaluation pack."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
from exported import Make

from qcompile import api
from qcompile.pm.registry import find_target, host_features, target_names
from qcompile.target.model import host_architecture

PACK = Path(__file__).parents[3] / "shared" / "data"
NETWORK = "resnet20_cifar10"

pytestmark = [
    pytest.mark.skipif(not (PACK / "load.py").exists(), reason="the evaluation pack ../shared/data is not here"),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc on this machine"),
]


def test_resnet20_is_its_parameters_and_200_kib(tmp_path: Path, make: Make) -> None:
    spec = importlib.util.spec_from_file_location("pack_load", PACK / "load.py")
    assert spec is not None
    assert spec.loader is not None
    pack = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pack)
    np.savez(tmp_path / "calib.npz", **pack.arrays(NETWORK, "calib", 16))
    result = api.compile(
        PACK / "models" / f"{NETWORK}.onnx", target="c", uniform="w8a8", calib=tmp_path / "calib.npz",
        out=tmp_path / "a.qc", measure=False,
    )  # fmt: skip
    weights = result.weight_bytes
    for name in target_names():
        target = find_target(name)
        if name == "x86-amx" or target.architecture != host_architecture():
            continue
        if not host_features().issuperset(target.features):
            continue
        found = api.export(tmp_path / "a.qc", tmp_path / name, target=name, prefix="r20")
        # Biases, multipliers and shifts are parameters too: 12 bytes for each of 698 channels, and alignment.
        assert found["parameter_bytes"] <= weights + (12 << 10)
        assert found["code_bytes"] <= 200 << 10
        done = make(tmp_path / name, "test", CC="gcc")
        assert "r20: 0 of 40 golden" in done.stdout, done.stdout + done.stderr
