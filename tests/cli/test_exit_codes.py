"""Every error becomes one message on standard error and its exit code; nothing else is printed."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qcompile import api, errors

Run = Callable[..., tuple[int, str, str]]


def failing(error: BaseException) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        raise error

    return call


CASES: list[tuple[BaseException, int, str]] = [
    (errors.UsageError("bad flag", hint="try this"), 2, "error: bad flag\n  hint: try this\n"),
    (errors.DataError("[d.npz]: wrong"), 2, "error: [d.npz]: wrong\n"),
    (errors.TargetError("unknown target 'z80'"), 2, "error: unknown target 'z80'\n"),
    (errors.CaptureError("damaged", node="conv1"), 3, "error: damaged (node 'conv1')\n"),
    (errors.UnsupportedOpError("Loop, Scan"), 3, "error: Loop, Scan\n"),
    (
        errors.InfeasibleError("latency 5 ms: the best is 6.2 ms"),
        4,
        "error: latency 5 ms: the best is 6.2 ms\n",
    ),
    (errors.AccuracyError("top-1 fell"), 5, "error: top-1 fell\n"),
    (errors.DeviceError("no VNNI"), 6, "error: no VNNI\n"),
    (errors.VerificationError("3 integers differ"), 7, "error: 3 integers differ\n"),
    (errors.ArtifactError("plan.json has changed"), 7, "error: plan.json has changed\n"),
    (errors.StorageError("disk full"), 8, "error: disk full\n"),
    (MemoryError(), 8, "error: out of memory\n  hint: give fewer samples, or a smaller model\n"),
    (
        OSError(errno.ENOSPC, "No space left on device"),
        8,
        "error: [Errno 28] No space left on device\n  hint: free some space\n",
    ),
    (KeyboardInterrupt(), 130, "error: interrupted; no artifact was written\n"),
    (
        ZeroDivisionError("division by zero"),
        1,
        "internal error: ZeroDivisionError: division by zero; "
        "please report it with what the same command prints with -v\n",
    ),
    (
        errors.PassContractError("fold-batch-norm changed outputs"),
        1,
        "internal error: fold-batch-norm changed outputs; please report it with what the same command prints with -v\n",
    ),
]


@pytest.mark.parametrize(("error", "code", "message"), CASES, ids=lambda v: type(v).__name__)
@pytest.mark.parametrize("json", [False, True])
def test_errors(
    qcompile: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str, json: bool
) -> None:
    monkeypatch.setattr(api, "explain", failing(error))
    assert qcompile("explain", "a.qc", *(["--json"] if json else [])) == (code, "", message)


def test_every_exit_code_is_covered() -> None:
    assert {code for _, code, _ in CASES} == {1, 2, 3, 4, 5, 6, 7, 8, 130}


def test_verbose_shows_the_traceback_of_internal_errors_only(qcompile: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "explain", failing(ZeroDivisionError("division by zero")))
    code, out, err = qcompile("explain", "a.qc", "-v")
    assert (code, out) == (1, "")
    assert "Traceback (most recent call last)" in err
    assert err.endswith("please report it with what the same command prints with -v\n")
    monkeypatch.setattr(api, "explain", failing(errors.CaptureError("damaged")))
    assert qcompile("explain", "a.qc", "-v") == (3, "", "error: damaged\n")


def test_usage(qcompile: Run) -> None:
    for arguments, text in (
        (["bench"], "Missing argument 'ARTIFACT'"),
        (["bench", "a.qc", "--threads", "zero"], "Invalid value for '--threads'"),
        (["bench", "a.qc", "--threads", "0"], "Invalid value for '--threads'"),
        (["model.onnx", "--latencyy", "5ms"], "No such option: --latencyy"),
        (["eval", "a.qc"], "Missing option '--data'"),
    ):
        code, out, err = qcompile(*arguments)
        assert (code, out) == (2, "")
        assert text in err
        assert "Traceback" not in err


def test_files_that_are_not_there(qcompile: Run) -> None:
    assert qcompile("net.onnx", "--uniform", "w8a8") == (
        2, "", "error: no such file: net.onnx\n  hint: a model is an ONNX file\n"
    )  # fmt: skip
    assert qcompile("targts") == (
        2,
        "",
        "error: no such file: targts\n  hint: did you mean `qcompile targets`?\n",
    )
    missing = "error: no such artifact: a.qc\n  hint: an artifact is a folder such as model.qc\n"
    for verb in (["bench"], ["explain"], ["verify"], ["run", "--data", "x.npz"], ["eval", "--data", "x.npz"]):
        assert qcompile(verb[0], "a.qc", *verb[1:])[::2] == (2, missing) or qcompile(
            verb[0], "a.qc", *verb[1:], "-q"
        ) == (2, "", missing)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--shape", "1x3x2x2"], "error: cannot read --shape '1x3x2x2'\n  hint: such as input:1x3x224x224\n"),
        (
            ["--shape", "x:1x-3"],
            "error: cannot read the size in --shape x: '1x-3'\n  hint: such as input:1x3x224x224\n",
        ),
        (["--pin", "conv1"], "error: cannot read --pin 'conv1'\n  hint: such as 'layer1.*=w8a8'\n"),
        (["--bits", "4;8"], "error: cannot read --bits '4;8'\n  hint: numbers of bits, such as 4,8\n"),
        (
            ["--images-mean", "1,2,x", "--images-std", "1"],
            "error: cannot read --images-mean '1,2,x'\n  hint: such as 123.675,116.28,103.53\n",
        ),
        (
            ["--images-resize", "224x224"],
            "error: a folder of images needs both --images-mean and --images-std\n"
            "  hint: for pixels as they are, 0 to 255: --images-mean 0 --images-std 1\n",
        ),
        (
            ["--images-mean", "0", "--images-std", "1", "--images-crop", "224"],
            "error: cannot read --images-crop '224'\n  hint: height x width in pixels, such as 224x224\n",
        ),
        (
            ["--images-mean", "0", "--images-std", "0"],
            "error: the images' std must not be 0\n",
        ),
    ],
)
def test_flags_that_cannot_be_read(qcompile: Run, flags: list[str], message: str) -> None:
    Path("net.onnx").write_bytes(b"")
    code, out, err = qcompile("net.onnx", "-q", *flags)
    assert (code, out, err) == (2, "", message)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--max-drop", "0.5"],
            "error: cannot read '0.5' as a percentage\n  hint: write a number and %, such as 0.5%\n",
        ),
        (
            ["--max-drop", "100%", "-c", "c.npz"],
            "error: a percentage must be at least 0% and below 100%, not '100%'\n  hint: for example 0.5%\n",
        ),
        (
            ["--max-drop", "1%"],
            "error: --max-drop needs samples to measure accuracy on\n  hint: give --calib, and --holdout with labels\n",
        ),
        (
            ["--max-drop", "1%", "-c", "c.npz", "--uniform", "w8a8"],
            "error: give --uniform, or --plan, or budgets, not several\n  hint: a given plan has no freedom\n",
        ),
        (
            ["--minimize", "memory", "--memory", "1MiB"],
            "error: --minimize says what --max-drop makes small\n  hint: give --max-drop, such as 0.5%\n",
        ),
        (
            ["--minimize", "size", "--max-drop", "1%", "-c", "c.npz"],
            "error: --minimize cannot make 'size' small\n  hint: it takes memory, latency\n",
        ),
        (
            ["--sensitivity", "trace", "--uniform", "w8a8"],
            "error: --sensitivity and --metric have no say in a given plan\n  hint: leave them out\n",
        ),
        (["--metric", "conv1"], "error: cannot read --metric 'conv1'\n  hint: such as 'features.*=sqnr'\n"),
    ],
)
def test_contradictions_of_planning_flags(qcompile: Run, flags: list[str], message: str) -> None:
    Path("net.onnx").write_bytes(b"")
    assert qcompile("net.onnx", "-q", *flags) == (2, "", message)


def test_an_unknown_sensitivity_lists_the_known_ones(qcompile: Run) -> None:
    from qcompile import pipelines

    Path("net.onnx").write_bytes(b"")
    for flags in (["--sensitivity", "magic"], ["--metric", ".*=magic"]):
        code, out, err = qcompile("net.onnx", "-q", *flags)
        assert (code, out) == (2, "")
        assert (
            err
            == f"error: unknown sensitivity 'magic'\n  hint: sensitivities are {', '.join(pipelines.SENSITIVITIES)}\n"
        )


def test_pins_need_bits(qcompile: Run) -> None:
    Path("net.onnx").write_bytes(b"")
    code, _, err = qcompile("net.onnx", "-q", "--pin", "conv1=8")
    assert code == 2
    assert err.startswith("error: cannot read '8' as a bit width\n")


def test_units_are_mandatory(qcompile: Run) -> None:
    Path("net.onnx").write_bytes(b"")
    for flags in (["--latency", "5"], ["--memory", "4"], ["--arena", "256k"], ["--memory", "-3MiB"]):
        code, out, err = qcompile("net.onnx", "-q", *flags)
        assert (code, out) == (2, "")
        assert err.startswith("error: cannot read ")
        assert list(Path().iterdir()) == [Path("net.onnx")]


def test_an_existing_artifact_is_not_replaced(qcompile: Run) -> None:
    Path("net.onnx").write_bytes(b"")
    Path("net.qc").mkdir()
    code, out, err = qcompile("net.onnx", "-q", "--uniform", "w8a8")
    assert (code, out) == (2, "")
    assert err == "error: net.qc exists\n  hint: choose another -o, or replace it with --force\n"


def test_other_people_s_warnings_are_not_shown(qcompile: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def noisy() -> list[dict[str, Any]]:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(False)
            logging.captureWarnings(True)
            warnings.warn("deprecated", DeprecationWarning, stacklevel=1)
        logging.getLogger("qcompile.x").info("detail")
        logging.getLogger("qcompile.x").warning("look [here]")
        return []

    monkeypatch.setattr(api, "targets", noisy)
    assert qcompile("targets", "--json") == (0, '{\n "targets": []\n}\n', "warning: look [here]\n")
    assert "detail\n" in qcompile("targets", "-v")[2]
    assert "deprecated" in qcompile("targets", "-vv")[2]


_SLOW = """
import os, sys, time
from qcompile import api
from qcompile.cli.app import main
def slow(*args, **kwargs):
    print("ready", file=sys.stderr, flush=True)
    time.sleep(60)
api.explain = slow
main(["explain", "a.qc", "--json"])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _SLOW], cwd=Path(__file__).parents[2], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
        # A background job of a shell ignores SIGINT, and what it starts inherits that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stderr is not None
    assert process.stderr.readline() == "ready\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", "error: interrupted; no artifact was written\n")


def test_a_reader_that_leaves() -> None:
    command = f"{sys.executable} -m qcompile --print-pipeline | true"
    done = subprocess.run(["bash", "-c", command], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.stderr == ""
