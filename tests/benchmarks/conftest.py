"""An artifact to time, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.prepare import capped_target
from qcompile import api

DIGITS = Path(__file__).parents[2] / "models" / "digits_resnet"


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The residual digits network at uniform 8 bits."""
    out = tmp_path_factory.mktemp("bench") / "w8a8.qc"
    api.compile(
        DIGITS / "digits_resnet.onnx", target=capped_target(), uniform="w8a8", calib=DIGITS / "calib.npz", out=out,
        measure=False,
    )  # fmt: skip
    return out
