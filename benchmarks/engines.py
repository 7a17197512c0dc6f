"""The engines: each loads a model and gives a function that times calls.

Every engine imports its own package when it loads, because each runs in an environment of its own.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.conditions import versions

Timer = Callable[[int], float]
"""Times so many calls; the median in seconds."""


_OURS = ("qcompile", "apache-tvm")


@dataclass(frozen=True)
class Loaded:
    """A model that is ready to be timed.

    Attributes:
        timer: times it.
        packages: versions of what runs it.
        facts: whatever else says what was measured.
    """

    timer: Timer
    packages: dict[str, str]
    facts: dict[str, Any] = field(default_factory=dict)


def timer_of(call: Callable[[], object]) -> Timer:
    """Time each call by itself, after three that do not count."""

    def timed(calls: int) -> float:
        clock = time.perf_counter_ns
        for _ in range(3):
            call()
        spent = np.empty(calls)
        for i in range(calls):
            start = clock()
            call()
            spent[i] = clock() - start
        return float(np.median(spent)) * 1e-9

    return timed


def _noise(shape: tuple[int, ...]) -> Any:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def load_qcompile(model: Path, threads: int, precision: str) -> Loaded:
    """An artifact: from integer input to integer output."""
    from qcompile.artifact import load

    artifact = load(model)
    executable = artifact.executable
    return Loaded(lambda calls: executable.measure(threads, calls).median, versions(_OURS), running_bytes(artifact))


def running_bytes(artifact: Any) -> dict[str, int]:
    """Memory a running artifact works in: packed parameters and arena, from its manifest."""
    build = artifact.manifest.build
    return {
        name: int(build[f"{name}_memory_bytes"]) for name in ("parameter", "arena") if f"{name}_memory_bytes" in build
    }


def load_qcompile_float(model: Path, threads: int, precision: str) -> Loaded:
    """An artifact from Python: NumPy quantises the float input and makes floats of the integer output."""
    from qcompile.artifact import load

    artifact = load(model, threads)
    inputs = {port.name: _noise((1, *port.type.sample)) for port in artifact.graph.inputs}
    return Loaded(timer_of(lambda: artifact.run(inputs)), versions(_OURS))


def load_onnxruntime(model: Path, threads: int, precision: str) -> Loaded:
    """An ONNX file with a fixed batch; input and output stay where they are between calls."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for port in session.get_inputs():
        binding.bind_cpu_input(port.name, _noise(tuple(port.shape)))
    for port in session.get_outputs():
        binding.bind_output(port.name, "cpu")
    return Loaded(timer_of(lambda: session.run_with_iobinding(binding)), versions(["onnxruntime"]))


def load_openvino(model: Path, threads: int, precision: str) -> Loaded:
    """An ONNX or OpenVINO file on one latency-bound stream; precision `f32` or `bf16` of what is not quantised."""
    openvino: Any = importlib.import_module("openvino")
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(model),
        "CPU",
        {
            "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": precision, "ENABLE_CPU_PINNING": False,
        },
    )  # fmt: skip
    request = compiled.create_infer_request()
    for index, port in enumerate(compiled.inputs):
        request.set_input_tensor(index, openvino.Tensor(_noise(tuple(port.shape))))
    kinds: dict[str, int] = {}
    for op in compiled.get_runtime_model().get_ops():
        info = op.get_rt_info()
        if info["layerType"].value in ("Convolution", "FullyConnected"):
            kind = str(info["primitiveType"].value)
            kinds[kind] = kinds.get(kind, 0) + 1
    return Loaded(timer_of(request.infer), versions(["openvino"]), {"layers": kinds})


def load_peak(model: Path, threads: int, precision: str) -> Loaded:
    """No model: the loop of dot products, on one core; the facts say how many operations it does."""
    from benchmarks.peak import Peak

    peak = Peak()
    return Loaded(timer_of(peak.call), {}, {"ops": peak.ops})


ENGINES: dict[str, Callable[[Path, int, str], Loaded]] = {
    "qcompile": load_qcompile, "qcompile-float": load_qcompile_float, "onnxruntime": load_onnxruntime,
    "openvino": load_openvino, "peak": load_peak,
}  # fmt: skip
