"""The main job on the networks that are shipped: budgets, determinism, torch and ONNX, the plan's promises."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

import qcompile
from qcompile import api
from qcompile.errors import InfeasibleError
from tests.capture.canonical import content

MODELS = Path(__file__).parents[2] / "models"
RESNET = MODELS / "digits_resnet"
MOBILE = MODELS / "digits_mobilenet"


def compile_digits(folder: Path, out: Path, **options: object) -> api.CompileResult:
    return api.compile(
        folder / f"{folder.name}.onnx", target="cpu", calib=folder / "calib.npz", out=out, **options  # type: ignore[arg-type]
    )  # fmt: skip


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "measurements.json"
    }


@pytest.mark.parametrize("folder", [RESNET, MOBILE], ids=lambda p: p.name)
def test_uniform_is_exact_and_accurate(folder: Path, tmp_path: Path) -> None:
    result = compile_digits(folder, tmp_path / "m.qc", uniform="w8a8", measure=False, eval_data=folder / "eval.npz")
    found = api.verify(result.artifact, folder / "eval.npz")
    assert (found["differing_integers"], found["float_operations"]) == (0, 0)
    assert found["inputs"] >= 360
    assert result.evaluation is not None and result.evaluation["top1"] >= 0.985


@pytest.mark.parametrize("bits", ["w2a4", "w3a5", "w5a6", "w6a7", "w4a4"])
def test_every_width_is_exact(bits: str, tmp_path: Path) -> None:
    for folder in (RESNET, MOBILE):
        result = compile_digits(folder, tmp_path / f"{folder.name}.qc", uniform=bits, measure=False)
        assert api.verify(result.artifact, folder / "calib.npz")["differing_integers"] == 0


@pytest.mark.parametrize("later", ["w4a4", "w2a8"])
def test_an_artifact_in_the_place_of_another_one_runs_its_own_code(later: str, tmp_path: Path) -> None:
    for bits in ("w8a8", later):
        result = compile_digits(RESNET, tmp_path / "m.qc", uniform=bits, measure=False, overwrite=True)
        assert api.verify(result.artifact, RESNET / "calib.npz")["differing_integers"] == 0


def test_two_runs_give_the_same_bytes(tmp_path: Path) -> None:
    first = compile_digits(RESNET, tmp_path / "a.qc", memory="26KiB")
    second = compile_digits(RESNET, tmp_path / "b.qc", memory="26KiB")
    assert hashes(first.artifact.path) == hashes(second.artifact.path)


def test_memory_budget_is_kept_and_the_gap_is_zero(tmp_path: Path) -> None:
    result = compile_digits(RESNET, tmp_path / "m.qc", memory="24KiB", eval_data=RESNET / "eval.npz")
    assert result.weight_bytes <= 24 * 1024
    assert result.solver["status"] == "optimal" and result.solver["gap"] == 0
    assert result.evaluation is not None and result.evaluation["top1"] >= 0.98
    assert result.measured_ms is not None and result.predicted_ms is not None


def test_impossible_budgets_name_the_best(tmp_path: Path) -> None:
    with pytest.raises(InfeasibleError, match=r"memory 1 KiB: the smallest plan takes 9[0-9]{3} B \(9") as caught:
        compile_digits(RESNET, tmp_path / "m.qc", memory="1KiB", measure=False)
    assert caught.value.exit_code == 4
    assert not (tmp_path / "m.qc").exists()


def test_torch_and_onnx_give_the_same_integers(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from models.nets import DigitsResNet

    state = {k: torch.tensor(v) for k, v in np.load(RESNET / "digits_resnet_state.npz").items()}
    module = DigitsResNet()
    module.load_state_dict(state)
    module.eval()
    onnx = compile_digits(RESNET, tmp_path / "onnx.qc", uniform="w6a7", measure=False)
    live = qcompile.compile(
        module, example=torch.zeros(1, 1, 16, 16), target="cpu", uniform="w6a7", calib=RESNET / "calib.npz",
        out=tmp_path / "torch.qc", measure=False,
    )  # fmt: skip
    assert content(onnx.artifact.graph) == content(live.artifact.graph)


def test_pins_are_kept(tmp_path: Path) -> None:
    result = compile_digits(RESNET, tmp_path / "m.qc", memory="26KiB", pins={"fc": "w8a8"}, measure=False)
    assert result.bits["fc"] == (8, 8)
