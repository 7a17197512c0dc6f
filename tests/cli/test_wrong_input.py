"""Wrong input, through the whole program: a message, the exit code, and nothing written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Run = Callable[..., tuple[int, str, str]]

DIGITS = Path(__file__).parents[2] / "models" / "digits_resnet"
ONNX, CALIB = DIGITS / "digits_resnet.onnx", DIGITS / "calib.npz"


@pytest.fixture
def net(qcompile: Run) -> Path:
    """A copy of the small network in the current folder, which is empty otherwise."""
    return Path(shutil.copy(ONNX, "net.onnx"))


def refused(qcompile: Run, *arguments: str) -> tuple[int, str]:
    before = sorted(Path().rglob("*"))
    code, out, err = qcompile(*arguments, "--target", "reference", "--uniform", "w8a8", "-q")
    assert out == ""
    assert "Traceback" not in err
    assert err.startswith("error: ")
    assert sorted(Path().rglob("*")) == before
    return code, err


@pytest.mark.parametrize("cut", [0, 1, 100, 20_000])
def test_a_truncated_model(qcompile: Run, net: Path, cut: int) -> None:
    net.write_bytes(net.read_bytes()[:cut])
    assert refused(qcompile, "net.onnx")[0] == 3


def test_a_model_that_is_none(qcompile: Run, net: Path) -> None:
    net.write_bytes(b"PK\x03\x04 this is no model" * 50)
    assert refused(qcompile, "net.onnx")[0] == 3


def image(n: int = 40, **changes: Any) -> dict[str, Any]:
    return {"input": np.zeros((n, 1, 16, 16), np.float32)} | changes


NAN = np.full((40, 1, 16, 16), np.nan, np.float32)


@pytest.mark.parametrize("flag", ["--calib", "--eval"])
@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"x": np.zeros((40, 1, 16, 16), np.float32)}, "expected the arrays input, found x"),
        (
            image(input=np.zeros((40, 1, 8, 8), np.float32)),
            "expected input float32(N,1,16,16), found float32(40,1,8,8)",
        ),
        (image(input=np.zeros((40, 1, 16, 16), np.uint8)), "found uint8(40,1,16,16)"),
        (image(input=NAN), "input holds NaN or infinity, first in sample 0"),
        (image(0), "holds no samples"),
        (image(labels=np.zeros(3)), "different numbers of samples"),
    ],
)
def test_data_that_does_not_fit(qcompile: Run, net: Path, flag: str, arrays: dict[str, Any], text: str) -> None:
    np.savez("data.npz", **arrays)
    code, err = refused(qcompile, "net.onnx", flag, "data.npz")
    assert code == 2
    assert text in err


def test_data_that_is_not_there(qcompile: Run, net: Path) -> None:
    code, err = refused(qcompile, "net.onnx", "--calib", "none.npz")
    assert (code, err.splitlines()[0]) == (2, "error: no such file: none.npz")
    Path("images").mkdir()
    code, err = refused(qcompile, "net.onnx", "--calib", "images")
    assert code == 2
    assert "--images-mean and --images-std" in err


def test_an_unknown_target(qcompile: Run, net: Path) -> None:
    code, _, err = qcompile("net.onnx", "-t", "z80", "-q")
    assert code == 2
    assert err.startswith("error: unknown target 'z80'\n")


def test_a_job_from_end_to_end(qcompile: Run, net: Path) -> None:
    import json

    flags = ("--target", "reference", "--uniform", "w4a8", "--calib", str(CALIB), "--samples", "32", "-q")
    artifacts = []
    for name in ("a.qc", "b.qc"):
        code, out, err = qcompile("net.onnx", *flags, "-o", name, "--json", "--no-measure")
        assert code == 0, err
        assert set(map(tuple, json.loads(out)["bits"].values())) == {(4, 8)}
        artifacts.append({p.relative_to(name): p.read_bytes() for p in Path(name).rglob("*") if p.is_file()})
    assert artifacts[0] == artifacts[1]
    code, out, _ = qcompile("eval", "a.qc", "--data", str(DIGITS / "eval.npz"), "--json", "-q")
    assert (code, json.loads(out)["n"]) == (0, 360)
    code, out, _ = qcompile("verify", "a.qc", "--json", "-q")
    assert code == 0
    assert json.loads(out)["differing_integers"] == 0
    path = Path("a.qc", "parameters.bin")
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    code, out, err = qcompile("bench", "a.qc", "-q")
    assert (code, out) == (7, "")
    assert "parameters.bin has changed since it was written" in err
