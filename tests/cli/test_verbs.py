"""What each verb asks of the API, and what it prints; standard output holds the result and nothing else."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qcompile import api, logs
from qcompile.cli.app import VERBS, with_verb
from qcompile.data import ImageFolder, Preprocessing

Run = Callable[..., tuple[int, str, str]]


class Spy:
    """Remembers how it was called, makes noise on every channel, and returns what it was given."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.args, self.kwargs = args, kwargs
        print("a chatty library")
        sys.stdout.flush()
        os.write(1, b"a chatty native library\n")
        return self.value


def facts(**changes: Any) -> Any:
    found = {
        "predicted_ms": 3.02, "measured_ms": 3.1, "weight_bytes": 8_500_000, "arena_bytes": 262_144,
        "arena_bound": 257_004,
        "solver": {"status": "optimal", "objective": 0.25, "bound": 0.25, "gap": 0.0},
        "bits": {"conv1": (8, 8), "conv2": (4, 8), "fc": (8, 8)},
    }  # fmt: skip
    found |= changes
    extra = {
        "warnings": ["ACCURACY IS UNVERIFIED: no calibration data"],
        "evaluation": {"top1": 0.9972, "agreement": 1.0},
        "accuracy": {},
    }
    as_json = {**found, "bits": {k: list(v) for k, v in found["bits"].items()}}
    return SimpleNamespace(**found, **extra, to_json=lambda: as_json)


def test_the_default_verb() -> None:
    assert with_verb(["net.onnx", "--latency", "5ms"]) == ["compile", "net.onnx", "--latency", "5ms"]
    assert with_verb(["--latency", "5ms", "net.onnx"])[0] == "compile"
    assert with_verb(["./run"]) == ["compile", "./run"]
    for verb in (*VERBS, "--help", "-h", "--version"):
        assert with_verb([verb]) == [verb]
    assert with_verb([]) == []
    assert set(VERBS) == {
        "compile", "inspect", "run", "eval", "bench", "verify", "explain", "sweep", "export", "doctor", "targets", "ops"
    }  # fmt: skip


def test_compile_passes_everything_on(qcompile: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(facts())
    monkeypatch.setattr(api, "compile", spy)
    Path("net.onnx").write_bytes(b"")
    Path("images").mkdir()
    code, out, err = qcompile(
        "net.onnx", "--target", "x86-avx2", "--latency", "5ms", "--memory", "4MiB", "--arena", "256KiB",
        "--plan", "plan.json", "--calib", "calib.npz", "--eval", "images", "-o", "out.qc",
        "--shape", "in:0:1x3x8x8", "--pin", "layer=1.*=w8a8", "--pin", "fc=w4a8", "--bits", "2,4,8",
        "--act-bits", "8", "--passes", "a,b",
        "--dump", "dumps", "--samples", "64", "--seed", "3", "--threads", "2", "--force", "--no-measure",
        "--images-mean", "1,2,3", "--images-std", "4", "--images-resize", "8x9", "--images-crop", "6x7",
        "--images-bgr", "--max-drop", "0.5%", "--minimize", "latency,memory", "--holdout", "images",
        "--sensitivity", "sqnr", "--metric", "a=b.*=fisher", "--protect", "fc", "--protect", "conv.*", "--json",
        "--device", "rpc://pi:9090?key=pi5", "--rounding", "adaround", "--costs", "costs.json",
        "--no-equalize",
        "--no-tune",
    )  # fmt: skip
    assert code == 0
    progress = spy.kwargs.pop("progress")
    assert callable(progress)
    assert spy.args == ("net.onnx",)
    how = Preprocessing((1.0, 2.0, 3.0), (4.0,), (8, 9), (6, 7), True)
    assert spy.kwargs == {
        "target": "x86-avx2", "latency": "5ms", "memory": "4MiB", "arena": "256KiB", "uniform": None,
        "plan": Path("plan.json"), "calib": Path("calib.npz"), "eval_data": ImageFolder(Path("images"), how),
        "out": Path("out.qc"), "shapes": {"in:0": (1, 3, 8, 8)}, "pins": {"layer=1.*": "w8a8", "fc": "w4a8"},
        "bits": (2, 4, 8), "act_bits": (8,), "passes": "a,b", "dump": Path("dumps"), "samples": 64, "seed": 3,
        "threads": 2, "overwrite": True, "measure": False, "max_drop": "0.5%", "minimize": ("latency", "memory"),
        "holdout": ImageFolder(Path("images"), how), "sensitivity": "sqnr", "metrics": {"a=b.*": "fisher"},
        "protect": ("fc", "conv.*"), "device": "rpc://pi:9090?key=pi5", "rounding": "adaround",
        "costs": Path("costs.json"), "equalize": False, "tune": False,
    }  # fmt: skip
    printed = json.loads(out)
    assert set(printed) >= {"predicted_ms", "measured_ms", "weight_bytes", "arena_bytes", "solver", "bits"}
    assert printed["bits"] == {"conv1": [8, 8], "conv2": [4, 8], "fc": [8, 8]}
    assert "a chatty library" in err
    assert "a chatty native library" in err


def test_the_api_takes_what_the_command_line_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    import ast
    import inspect

    from qcompile.cli.verbs import compile as verb

    tree = ast.parse(inspect.getsource(verb))
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "api.compile"]
    given = {keyword.arg for call in calls for keyword in call.keywords}
    assert given <= set(inspect.signature(api.compile).parameters)


def test_compile_for_people(qcompile: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(*args: Any, progress: Callable[[str, int, int], None], **kwargs: Any) -> Any:
        progress("capture", 0, 0)
        logs.note("%d nodes", 62)
        logs.note("21 quantisable")
        progress("calibrate", 0, 0)
        for i in range(4):
            progress("calibrate", i, 3)
        return facts()

    monkeypatch.setattr(api, "compile", compiled)
    Path("net.onnx").write_bytes(b"")
    code, out, err = qcompile("net.onnx", "--latency", "5ms")
    assert code == 0
    assert out == (
        "latency    3.02 ms predicted, 3.1 ms measured   budget 5ms\n"
        "weights    8.11 MiB\n"
        "arena      256 KiB = 1.02 × lower bound\n"
        "plan       optimal, gap 0.00 %\n"
        "layers     2 × w8a8, 1 × w4a8\n"
        "top-1      99.72 %\n"
        "agreement  100.00 %\n"
        "wrote net.qc   why these bits: qcompile explain net.qc\n"
    )
    lines = err.splitlines()
    assert lines[0] == "qcompile  net.onnx → cpu  5ms"
    assert lines[1].split() == ["capture", "62", "nodes,", "21", "quantisable", "0.0", "s"]
    assert lines[2].split() == ["calibrate", "0.0", "s"]
    assert lines[3:] == ["warning: ACCURACY IS UNVERIFIED: no calibration data"]
    quiet = qcompile("net.onnx", "--latency", "5ms", "-q")
    assert quiet == (0, out, "warning: ACCURACY IS UNVERIFIED: no calibration data\n")


DROP = {
    "metric": "top-1", "samples": 360, "float": 0.9972, "value": 0.9944, "drop": 0.0028, "drop_below": 0.0123,
    "confidence": 0.95,
}  # fmt: skip


def test_compile_states_a_measured_drop_and_its_bound(qcompile: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = facts()
    compiled.accuracy = {**DROP, "drop": 0.0, "built": DROP, "max_drop": 0.005}
    monkeypatch.setattr(api, "compile", Spy(compiled))
    Path("net.onnx").write_bytes(b"")
    _, out, err = qcompile("net.onnx", "--max-drop", "0.5%")
    assert "accuracy   top-1 -0.28 % on 360 held-out samples; the drop is below 1.2 % with 95 % confidence\n" in out
    assert "at most 0.5% lost" in err.splitlines()[0]


def swept(files: list[Path]) -> Any:
    row = {
        "budget": 20480, "plan": "solver", "bytes": 20000, "predicted_ms": 0.5, "predicted_loss": 0.01, "bound": 0.01,
        "gap": 0.0, "held_out_loss": 0.02, "agreement": 0.98, "accuracy": DROP, "bits": {"fc": [8, 8]},
    }  # fmt: skip
    found = {"axis": "memory", "front": [row]}
    return SimpleNamespace(axis="memory", rows=[row], files=files, warnings=["no picture"], to_json=lambda: found)


def test_sweep(qcompile: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(swept([Path("front/front.json")]))
    monkeypatch.setattr(api, "sweep", spy)
    Path("net.onnx").write_bytes(b"")
    code, out, err = qcompile(
        "sweep", "net.onnx", "--memory", "20KiB:60KiB:5KiB", "--latency", "5ms", "-o", "front", "--points", "7",
        "--calib", "c.npz", "--holdout", "h.npz", "--pin", "fc=w8a8", "--protect", "stem", "--sensitivity", "trace",
        "--metric", "fc=sqnr", "--no-measure", "--seed", "3",
    )  # fmt: skip
    assert code == 0
    assert callable(spy.kwargs.pop("progress"))
    assert spy.args == ("net.onnx",)
    assert spy.kwargs == {
        "target": "cpu", "axis": "memory", "span": "20KiB:60KiB:5KiB", "points": 7, "latency": "5ms",
        "calib": Path("c.npz"), "holdout": Path("h.npz"), "out": Path("front"), "shapes": None,
        "pins": {"fc": "w8a8"}, "bits": None, "act_bits": None, "passes": None, "samples": None, "seed": 3,
        "threads": 1, "measure": False, "sensitivity": "trace", "metrics": {"fc": "sqnr"}, "protect": ("stem",),
    }  # fmt: skip
    shown = " ".join(out.split())
    assert "20 KiB 19.5 KiB 0.5 ms 0.01 0.02 99.44 % 0.28 % 0.00 % solver" in shown
    assert "top-1 on 360 samples nothing else has seen" in out
    assert "wrote front/front.json" in out
    assert "warning: no picture" in err
    assert json.loads(qcompile("sweep", "net.onnx", "--json")[1])["front"][0]["plan"] == "solver"
    for flags, axis, span, limit in (
        (["--latency", "2ms:10ms"], "latency", "2ms:10ms", {"memory": None, "latency": None}),
        (["--latency", "2ms:10ms", "--memory", "4MiB"], "latency", "2ms:10ms", {"memory": "4MiB", "latency": None}),
        (["--memory", "4MiB"], "latency", None, {"memory": "4MiB", "latency": None}),
        (["--latency", "5ms"], "memory", None, {"latency": "5ms"}),
        ([], "memory", None, {"latency": None}),
    ):
        assert qcompile("sweep", "net.onnx", *flags)[0] == 0
        assert (spy.kwargs["axis"], spy.kwargs["span"]) == (axis, span)
        assert {key: spy.kwargs[key] for key in limit} == limit
    code, out, err = qcompile("sweep", "net.onnx", "--latency", "1ms:2ms", "--memory", "1KiB:2KiB")
    assert (code, out) == (2, "")
    assert "both ranges" in err


def test_the_apis_take_what_sweep_gives() -> None:
    import inspect

    shared = {"target", "latency", "memory", "calib", "holdout", "pins", "bits", "act_bits", "sensitivity", "protect"}
    assert shared <= set(inspect.signature(api.sweep).parameters) & set(inspect.signature(api.compile).parameters)


def test_compile_without_a_plan_gap(qcompile: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    solver = {"status": "uniform", "objective": None, "bound": None, "gap": None}
    monkeypatch.setattr(api, "compile", Spy(facts(solver=solver, predicted_ms=None, measured_ms=None)))
    Path("net.onnx").write_bytes(b"")
    _, out, _ = qcompile("net.onnx", "--uniform", "w8a8")
    assert "plan       uniform\n" in out
    assert "latency" not in out


def test_a_model_must_be_named(qcompile: Run) -> None:
    code, out, err = qcompile("compile")
    assert (code, out) == (2, "")
    assert err == "error: name the model to compile\n  hint: qcompile MODEL --latency 5ms, or qcompile --help\n"


def test_print_pipeline(qcompile: Run) -> None:
    from qcompile import pipelines

    code, out, _ = qcompile("--print-pipeline")
    assert code == 0
    assert ",".join(pipelines.CANONICALIZE) in out
    _, out, _ = qcompile("--print-pipeline", "--json")
    assert json.loads(out)["lower"] == list(pipelines.LOWER)


def test_eval(qcompile: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"n": 360, "top1": 0.9972, "agreement": None, "loss": 0.0123}
    spy = Spy(found)
    monkeypatch.setattr(api, "evaluate", spy)
    code, out, _ = qcompile("eval", "a.qc", "--data", "d.npz", "--json")
    assert (code, json.loads(out)) == (0, found)
    assert (spy.args, spy.kwargs) == (("a.qc", Path("d.npz")), {"model": None})
    assert qcompile("eval", "a.qc", "--data", "d.npz", "-q")[1] == "samples  360\ntop-1    99.72 %\nloss     0.0123\n"
    Path("net.onnx").write_bytes(b"")
    qcompile("eval", "a.qc", "--data", "d.npz", "--model", "net.onnx")
    assert spy.kwargs == {"model": "net.onnx"}


def test_bench(qcompile: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"median_ms": 3.1, "p90_ms": 3.25, "threads": 4, "runs": 200}
    spy = Spy(found)
    monkeypatch.setattr(api, "bench", spy)
    code, out, _ = qcompile("bench", "a.qc", "--threads", "4", "--json")
    assert (code, json.loads(out), spy.args) == (0, found, ("a.qc", 4, 0, None))
    expected = "median      3.1 ms\np90         3.25 ms\nconditions  4 threads, 200 runs, batch 1\n"
    assert qcompile("bench", "a.qc", "-q", "--runs", "200")[1] == expected
    assert spy.args == ("a.qc", 1, 200, None)


@pytest.mark.parametrize(("differing", "floats", "code"), [(0, 0, 0), (3, 0, 7), (0, 2, 7)])
def test_verify(qcompile: Run, monkeypatch: pytest.MonkeyPatch, differing: int, floats: int, code: int) -> None:
    found = {
        "inputs": 364, "differing_integers": differing, "float_operations": floats,
        "found": ["qk0: vmulps"] * floats,
    }  # fmt: skip
    monkeypatch.setattr(api, "verify", Spy(found))
    assert json.loads(qcompile("verify", "a.qc", "--data", "d.npz", "--json")[1]) == found
    got, out, _ = qcompile("verify", "a.qc", "-q")
    assert got == code
    last = "FAILED" if code else "integer-only, and equal to the reference bit for bit"
    assert out.splitlines()[-1] == last
    assert out.count("vmulps") == floats


def test_inspect_explain_targets_ops(qcompile: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    model = {
        "supported": True,
        "macs": 1234,
        "layers": [{"name": "conv[1]", "weights": [8, 3, 3, 3]}],
        "hint": None,
    }
    spy = Spy(model)
    monkeypatch.setattr(api, "inspect", spy)
    Path("net.onnx").write_bytes(b"")
    assert json.loads(qcompile("inspect", "net.onnx", "--shape", "x:1x3", "--json")[1]) == model
    assert (spy.args, spy.kwargs) == (("net.onnx",), {"shapes": {"x": (1, 3)}})
    monkeypatch.setattr(api, "inspect", Spy({"supported": False, "problem": "1 node"}))
    assert qcompile("inspect", "net.onnx")[0] == 3
    monkeypatch.setattr(api, "inspect", spy)
    out = qcompile("inspect", "net.onnx")[1]
    assert "supported  yes\n" in out
    assert "conv[1]" in out
    assert "8, 3, 3, 3" in out
    now = {"bits": [4, 8], "loss": 0.5, "seconds": 1e-3, "bytes": 96}
    step = {"bits": [5, 8], "loss_saved": 0.25, "extra_bytes": 24, "extra_ms": 0.0}
    layer = {"bits": [4, 8], "tied_to": ["conv2"], "now": now, "choices": [now], "upgrades": [step]}
    plans = [{"plan": "solver", "chosen": True, "loss": 0.125, "agreement": 1.0}]
    why = {"target": "x86", "candidates": plans, "layers": {"conv1": layer}}
    spy = Spy(why)
    monkeypatch.setattr(api, "explain", spy)
    assert json.loads(qcompile("explain", "a.qc", "conv1", "--json")[1]) == why
    assert (spy.args, spy.kwargs) == (("a.qc",), {"layer": "conv1"})
    shown = " ".join(qcompile("explain", "a.qc")[1].split())
    assert "solver 0.125 100.00 % yes" in shown
    assert "conv1 w4a8 0.5 1 96 w5a8: loss -0.25 for 24 B, +0 ms conv2" in shown
    change = {"conv1": [[4, 8], [5, 8]], "conv2": [[4, 8], [6, 8]]}
    why["marginal"] = [{"axis": "memory", "extra": 1024.0, "loss": 0.25, "saved": 0.25, "changes": change}]
    shown = " ".join(qcompile("explain", "a.qc", "conv1")[1].split())
    assert "what more of a budget would change" in shown
    assert "memory +1 KiB 0.25 0.25 w4a8 → w5a8 conv2 w6a8" in shown
    monkeypatch.setattr(api, "targets", Spy([{"name": "cpu", "bits": [2, 8]}]))
    assert json.loads(qcompile("targets", "--json")[1]) == {"targets": [{"name": "cpu", "bits": [2, 8]}]}
    monkeypatch.setattr(api, "ops", Spy([{"source": "onnx", "operators": ["Add"]}]))
    assert json.loads(qcompile("ops", "--json")[1]) == {"ops": [{"source": "onnx", "operators": ["Add"]}]}
    assert "Add" in qcompile("ops")[1]


def test_run(qcompile: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from qcompile import artifact
    from qcompile.ir import BATCH, Input, TensorType

    graph = SimpleNamespace(inputs=(Input("input", TensorType((BATCH, 2), "f32")),))
    fake = SimpleNamespace(graph=graph, run=lambda inputs: {"y": inputs["input"].sum(axis=1, keepdims=True)})
    shared: list[int | None] = []
    monkeypatch.setattr(artifact, "load", lambda path, threads: shared.append(threads) or fake)
    x = np.random.default_rng(0).normal(size=(70, 2)).astype(np.float32)
    np.savez("d.npz", input=x, labels=np.arange(70))
    code, out, _ = qcompile("run", "a.qc", "--data", "d.npz", "-o", "y.npz", "--json")
    assert code == 0
    found = json.loads(out)
    assert (found["n"], found["file"], found["outputs"]["y"]["shape"]) == (70, "y.npz", [70, 1])
    with np.load("y.npz") as z:
        np.testing.assert_allclose(z["y"][:, 0], x.sum(axis=1), rtol=1e-6)
    first = Path("y.npz").read_bytes()
    qcompile("run", "a.qc", "--data", "d.npz", "-o", "y.npz", "--threads", "3")
    assert Path("y.npz").read_bytes() == first
    assert shared == [None, 3]
    np.savez("bad.npz", other=x)
    code, out, err = qcompile("run", "a.qc", "--data", "bad.npz", "-o", "z.npz")
    assert (code, out) == (2, "")
    assert "expected the arrays input, found other" in err
    assert not Path("z.npz").exists()


def test_help_and_version(qcompile: Run) -> None:
    code, out, _ = qcompile("--help")
    assert code == 0
    assert all(verb in out for verb in VERBS)
    assert "130 interrupted" in out
    for verb in VERBS:
        code, out, _ = qcompile(verb, "--help")
        assert code == 0
        assert "Example: qcompile" in out
    code, out, _ = qcompile("--version")
    assert (code, out.split()[0]) == (0, "qcompile")
    code, _, _ = qcompile()
    assert code == 2


def test_help_is_quick() -> None:
    import subprocess

    code = (
        "import sys\nfrom qcompile.cli.app import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(*(m for m in ('torch', 'tvm', 'onnx', 'pulp') if m in sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.stderr.strip() == ""
