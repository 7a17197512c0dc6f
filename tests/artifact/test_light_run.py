"""A running artifact stays small: neither a compiler nor torch is imported for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qcompile
from qcompile.artifact import Artifact, load
from qcompile.errors import DataError, UsageError

DIGITS = Path(__file__).resolve().parents[2] / "models" / "digits_resnet"
ROOT = Path(__file__).resolve().parents[2]

_RUN = """
import sys, numpy as np
from qcompile.artifact import load
net = load(sys.argv[1])
net.run({p.name: np.zeros((2, *p.type.sample), np.float32) for p in net.graph.inputs})
net.executable.measure(2, 20)
mapped = open("/proc/self/maps").read()
print(sorted(name for name in ("tvm", "torch", "onnx") if name in sys.modules or f"lib{name}" in mapped))
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    out = tmp_path_factory.mktemp("light") / "digits.qc"
    model, calib = DIGITS / "digits_resnet.onnx", DIGITS / "calib.npz"
    qcompile.compile(model, target="cpu", uniform="w8a8", calib=calib, out=out, measure=False)
    return load(out)


def test_running_imports_no_compiler(built: Artifact) -> None:
    done = subprocess.run([sys.executable, "-c", _RUN, str(built.path)], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout, done.stderr, done.returncode) == ("[]\n", "", 0)


def test_an_artifact_runs_on_as_many_threads_as_it_was_compiled_for(built: Artifact) -> None:
    (port,) = built.graph.inputs
    x = {port.name: np.random.default_rng(1).standard_normal((2, *port.type.sample)).astype(np.float32)}
    assert built.threads == built.manifest.record.threads == 1
    for net, threads in ((built, 1), (load(built.path, threads=3), 3)):
        executable: Any = net.executable
        assert executable._threads == threads
        for name, y in net.run(x).items():
            assert np.array_equal(y, built.run(x)[name])
    with pytest.raises(UsageError, match="at least 1, not 0"):
        load(built.path, threads=0)


def test_the_manifest_says_how_much_memory_it_works_in(built: Artifact) -> None:
    facts = built.manifest.build
    assert int(facts["arena_memory_bytes"]) >= built.manifest.record.arena_bytes
    assert int(facts["parameter_memory_bytes"]) >= built.manifest.weight_bytes


def test_floats_in_give_the_same_with_and_without_native_code(built: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = built.graph.inputs
    x = np.random.default_rng(0).standard_normal((3, *port.type.sample)).astype(np.float32)
    quick = built.run({port.name: x})
    # Anything unusual about the input, such as its memory layout, takes the way with all checks.
    slow = built.run({port.name: np.asfortranarray(x)})
    monkeypatch.setitem(built.__dict__, "_quantizer", None)
    plain = built.run({port.name: x})
    for name, expected in plain.items():
        assert np.array_equal(quick[name], expected)
        assert np.array_equal(slow[name], expected)
        assert quick[name].dtype == np.float32


def test_the_quick_way_still_finds_what_does_not_fit(built: Artifact) -> None:
    (port,) = built.graph.inputs
    x = np.zeros((1, *port.type.sample), np.float32)
    for bad, said in ((np.nan, "NaN or infinity"), (np.inf, "NaN or infinity")):
        spoilt = x.copy()
        spoilt.flat[7] = bad
        with pytest.raises(DataError, match=said):
            built.run({port.name: spoilt})
    with pytest.raises(DataError, match="expected"):
        built.run({port.name: x[0]})
    with pytest.raises(DataError, match="holds no samples"):
        built.run({port.name: x[:0]})
