"""The Python interface: what the command line does, as functions."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompile.artifact import Artifact
from qcompile.artifact import load as load_artifact
from qcompile.compiler import Budgets, Progress
from qcompile.data import load_batches
from qcompile.errors import UsageError
from qcompile.ir import Array, Graph
from qcompile.job import CompileResult, Job, silent
from qcompile.target.device import parse_device
from qcompile.units import parse_bits, parse_bytes, parse_fraction, parse_latency

if TYPE_CHECKING:
    from qcompile.sweeping import Sweep


def capture(
    model: Any,
    *,
    example: Any = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    name: str | None = None,
) -> Graph:
    """The float graph of an ONNX file or model, a torch module, an ExportedProgram or a GraphModule.

    See `qcompile.capture.capture`.  The captured graph is compared with its source on sample input.
    """
    from qcompile.capture import capture as capture_model
    from qcompile.capture.check import check_capture

    graph = capture_model(model, example=example, shapes=shapes, name=name)
    check_capture(graph, model)
    return graph


def compile(
    model: Any,
    *,
    target: str = "cpu",
    latency: str | float | None = None,
    memory: str | int | None = None,
    arena: str | int | None = None,
    uniform: str | None = None,
    plan: str | os.PathLike[str] | None = None,
    calib: Any = None,
    eval_data: Any = None,
    out: str | os.PathLike[str] | None = None,
    example: Any = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    pins: Mapping[str, str] | None = None,
    bits: Sequence[int] | None = None,
    act_bits: Sequence[int] | None = None,
    passes: str | None = None,
    dump: str | os.PathLike[str] | None = None,
    samples: int | None = None,
    seed: int = 0,
    threads: int = 1,
    overwrite: bool = False,
    measure: bool = True,
    progress: Progress | None = None,
    max_drop: str | float | None = None,
    minimize: str | Sequence[str] = (),
    holdout: Any = None,
    sensitivity: str | None = None,
    metrics: Mapping[str, str] | None = None,
    protect: Sequence[str] = (),
    rounding: str | None = None,
    equalize: bool = True,
    tune: bool = True,
    device: str | None = None,
    costs: str | os.PathLike[str] | None = None,
) -> CompileResult:
    """Compile a network to integer-only code under budgets.

    Args:
        model: path of an ONNX file, or a torch module (with `example`), ExportedProgram or GraphModule.
        target: name of a target; `cpu` picks the best for this machine.
        latency: end to end, batch 1: text with a unit (`"5ms"`) or seconds.
        memory: packed weights: text with a unit (`"4MiB"`) or bytes.
        arena: activations at the peak, like `memory`.
        uniform: `"w8a8"` gives every layer the same bits and skips the search.
        plan: a JSON file with the bits of every layer.
        calib: calibration data (see `qcompile.data.Source`); without it accuracy is unverified.
        eval_data: data to evaluate the artifact on, likewise.
        out: folder of the artifact; a temporary one where it is not given.
        shapes: shapes of inputs that are dynamic in the file.
        pins: regular expression over layer names → bits (`{"fc": "w8a8"}`).
        bits, act_bits: widths the planner may use; all that the target offers where not given.
        samples: how many calibration samples to use.
        threads: of the measurements.
        overwrite: whether an existing artifact may be replaced.
        measure: False neither measures kernels nor the artifact: costs are a roofline, and the plan says so.
        max_drop: largest loss of accuracy measured on held-out samples, text with a percent sign (`"0.5%"`, percentage
            points of all samples) or a fraction; the plan is then made as small as it allows.
        minimize: what is made small, `"memory"`, `"latency"` or several in order; by default what is limited, else
            memory, then latency.
        holdout: samples that only judge accuracy, with labels for top-1; without it half of what is held out of the
            calibration data.
        sensitivity: how losses are predicted: a key of `qcompile.pipelines.SENSITIVITIES`.
        metrics: regular expression over layer names → another sensitivity for these layers.
        protect: regular expressions over layer names; these layers keep the widest bits.
        rounding: how weights become integers: `"gptq"` (the default), `"adaround"`, `"adaquant"`, `"discquant"` or
            `"nearest"`.
        equalize: whether channels are scaled between layers so that rounding costs less (equalize-layers).
        tune: whether scales and biases are tuned where few bits change the answers (tune-scales).
        device: where kernels and artifacts are measured: `"local"`, or an address (see `qcompile.target.device`).
        costs: file of costs measured on a device of the target, used where nothing can be measured.

    Raises:
        QcompileError: see `qcompile.errors`; nothing is left half-written.
    """
    job = Job(
        model=model,
        target=target,
        budgets=_budgets(latency, memory, arena, max_drop, minimize),
        uniform=uniform,
        plan=None if plan is None else Path(plan),
        calib=calib,
        eval_data=eval_data,
        out=None if out is None else Path(out),
        example=example,
        shapes=shapes,
        pins={pattern: parse_bits(text) for pattern, text in (pins or {}).items()},
        weight_bits=None if bits is None else tuple(bits),
        act_bits=None if act_bits is None else tuple(act_bits),
        passes=passes,
        dump=None if dump is None else Path(dump),
        samples=samples,
        seed=seed,
        threads=threads,
        overwrite=overwrite,
        measure=measure,
        progress=progress or silent,
        holdout=holdout,
        sensitivity=sensitivity,
        metrics=dict(metrics or {}),
        protect=tuple(protect),
        rounding=rounding,
        equalize=equalize,
        tune=tune,
        device=parse_device(device),
        costs=None if costs is None else Path(costs),
    )
    return job.run()


def sweep(
    model: Any,
    *,
    target: str = "cpu",
    axis: str = "memory",
    span: str | None = None,
    points: int = 10,
    latency: str | float | None = None,
    memory: str | int | None = None,
    calib: Any = None,
    holdout: Any = None,
    out: str | os.PathLike[str] | None = None,
    example: Any = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    pins: Mapping[str, str] | None = None,
    bits: Sequence[int] | None = None,
    act_bits: Sequence[int] | None = None,
    passes: str | None = None,
    samples: int | None = None,
    seed: int = 0,
    threads: int = 1,
    measure: bool = True,
    progress: Progress | None = None,
    sensitivity: str | None = None,
    metrics: Mapping[str, str] | None = None,
    protect: Sequence[str] = (),
) -> Sweep:
    """Plans over the whole front of one budget: predicted and measured loss, accuracy, bytes and latency of each.

    Nothing is built: losses and accuracy are those of fake-quantised execution on samples no analysis has seen.

    Args:
        axis: "memory" or "latency".
        span: its budgets, `"2ms:10ms:0.5ms"` or `"2ms:10ms"`; without it from the cheapest plan to the most precise.
        points: how many, where no step is given.
        latency, memory: limits of every plan.
        out: folder for front.json, front.csv and front.svg (with matplotlib).

    The rest is as in `compile`.
    """
    from qcompile.planning import AXES
    from qcompile.sweeping import run_sweep

    if axis not in AXES:
        raise UsageError(f"a sweep goes along {' or '.join(AXES)}, not {axis!r}")
    job = Job(
        model=model, target=target, budgets=_budgets(latency, memory), uniform=None, plan=None, calib=calib,
        eval_data=None, out=None if out is None else Path(out), example=example, shapes=shapes,
        pins={pattern: parse_bits(text) for pattern, text in (pins or {}).items()},
        weight_bits=None if bits is None else tuple(bits), act_bits=None if act_bits is None else tuple(act_bits),
        passes=passes, dump=None, samples=samples, seed=seed, threads=threads, overwrite=True, measure=measure,
        progress=progress or silent, holdout=holdout, sensitivity=sensitivity, metrics=dict(metrics or {}),
        protect=tuple(protect),
    )  # fmt: skip
    return run_sweep(job, span, points, axis)


def _budgets(
    latency: str | float | None,
    memory: str | int | None,
    arena: str | int | None = None,
    max_drop: str | float | None = None,
    minimize: str | Sequence[str] = (),
) -> Budgets:
    """Budgets from texts with units or plain numbers.  Raises UsageError."""
    if isinstance(max_drop, float | int) and not 0 <= max_drop < 1:
        raise UsageError(f"max_drop is a fraction from 0 to 1, not {max_drop}", hint="0.005 or '0.5%'")
    return Budgets(
        parse_latency(latency) if isinstance(latency, str) else latency,
        parse_bytes(memory) if isinstance(memory, str) else memory,
        parse_bytes(arena) if isinstance(arena, str) else arena,
        parse_fraction(max_drop) if isinstance(max_drop, str) else max_drop,
        (minimize,) if isinstance(minimize, str) else tuple(minimize),
    )


def evaluate(artifact: str | os.PathLike[str] | Artifact, data: Any, model: Any = None) -> dict[str, Any]:
    """{n, top1, agreement, loss}: fractions; top1 and loss need labels, agreement the source model."""
    opened = _opened(artifact)
    from qcompile.evaluation import evaluate_batches

    return evaluate_batches(
        opened.run, load_batches(data, opened.graph.inputs), None if model is None else capture(model)
    )


def run(
    artifact: str | os.PathLike[str] | Artifact, inputs: Mapping[str, Array], device: str | None = None
) -> dict[str, Array]:
    """Float outputs by name for float inputs by name, each with a batch dimension."""
    opened = _opened(artifact, device)
    return opened.run(inputs)


def bench(
    artifact: str | os.PathLike[str] | Artifact, threads: int = 1, runs: int = 0, device: str | None = None
) -> dict[str, Any]:
    """{median_ms, p90_ms, threads, runs} of single-sample calls, integer input to integer output; runs=0 chooses."""
    opened = _opened(artifact, device)
    measured = opened.executable.measure(threads, runs)
    return {
        "median_ms": measured.median * 1e3, "p90_ms": measured.p90 * 1e3, "threads": threads, "runs": measured.runs
    }  # fmt: skip


def _opened(artifact: str | os.PathLike[str] | Artifact, device: str | None = None) -> Artifact:
    opened = artifact if isinstance(artifact, Artifact) else load_artifact(Path(artifact))
    return opened if device is None else opened.on(parse_device(device))


def verify(artifact: str | os.PathLike[str] | Artifact, data: Any = None, device: str | None = None) -> dict[str, Any]:
    """{inputs, differing_integers, float_operations, found}: see `qcompile.verification.verify_artifact`."""
    from qcompile.verification import verify_artifact

    return verify_artifact(_opened(artifact, device), data)


def export(
    artifact: str | os.PathLike[str] | Artifact,
    out: str | os.PathLike[str],
    *,
    format: str = "c",
    target: str | None = None,
    prefix: str = "model",
    fast: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write an artifact as C files: see `qcompile.export.export_artifact`."""
    from qcompile.export import FORMATS, export_artifact

    if format not in FORMATS:
        raise UsageError(f"unknown export format {format!r}", hint=f"formats are {', '.join(FORMATS)}")
    return export_artifact(_opened(artifact), Path(out), target=target, prefix=prefix, fast=fast, overwrite=overwrite)


def inspect(model: Any, shapes: Mapping[str, Sequence[int]] | None = None) -> dict[str, Any]:
    """What a model holds, or what in it is not supported: see `qcompile.inspection.inspect_model`."""
    from qcompile.inspection import inspect_model

    return inspect_model(model, shapes)


def explain(artifact: str | os.PathLike[str] | Artifact, layer: str | None = None) -> dict[str, Any]:
    """Why a layer got its bits: see `qcompile.inspection.explain_artifact`."""
    from qcompile.inspection import explain_artifact

    return explain_artifact(_opened(artifact), layer)


def targets() -> list[dict[str, Any]]:
    """The targets, and which of them this machine can run."""
    from qcompile.inspection import list_targets

    return list_targets()


def doctor() -> dict[str, Any]:
    """What this installation and this machine can do, and what is missing: see `qcompile.diagnosis`."""
    from qcompile.diagnosis import diagnose

    return diagnose()


def ops() -> list[dict[str, Any]]:
    """The operators that can be captured."""
    from qcompile.inspection import list_ops

    return list_ops()
