"""`qcompile sweep MODEL`: the whole front of loss over bytes or latency in one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from qcompile.cli import job_options as job
from qcompile.cli import options
from qcompile.cli.display import line, milliseconds, percent, show
from qcompile.cli.session import session
from qcompile.errors import UsageError
from qcompile.units import format_bytes


def command(
    model: options.ModelPath,
    target: job.Target = "cpu",
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="DIR", help="Folder for front.json, front.csv and front.svg."),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory",
            metavar="RANGE",
            rich_help_panel=job.BUDGETS,
            help="Packed weights, first:last or first:last:step: 20KiB:60KiB:5KiB. A single size limits every plan. "
            "[default: from the smallest plan to the most precise]",
        ),
    ] = None,
    latency: Annotated[
        str | None,
        typer.Option(
            "--latency",
            metavar="RANGE",
            rich_help_panel=job.BUDGETS,
            help="One sample, end to end: 2ms:10ms:0.5ms. A single time limits every plan.",
        ),
    ] = None,
    points: Annotated[
        int, typer.Option("--points", min=2, max=200, rich_help_panel=job.BUDGETS, help="Budgets, without a step.")
    ] = 10,
    pin: job.Pin = None,
    protect: job.Protect = None,
    bits: job.WeightBits = None,
    act_bits: job.ActBits = None,
    sensitivity: job.SensitivityName = None,
    metric: job.Metric = None,
    calib: job.Calib = None,
    holdout: job.Holdout = None,
    samples: job.Samples = None,
    shape: options.Shape = None,
    images_mean: options.ImagesMean = None,
    images_std: options.ImagesStd = None,
    images_resize: options.ImagesResize = None,
    images_crop: options.ImagesCrop = None,
    images_bgr: options.ImagesBgr = False,
    passes: job.Passes = None,
    seed: job.Seed = 0,
    threads: job.Threads = 1,
    no_measure: job.NoMeasure = False,
    json: options.Json = False,
    no_progress: options.NoProgress = False,
    verbose: options.Verbose = 0,
    quiet: options.Quiet = False,
) -> None:
    """Plan for a row of budgets: predicted and measured loss, accuracy, bytes and latency of each.

    Nothing is built. Loss and accuracy are measured by fake quantisation on samples that no analysis has seen; the
    picture needs matplotlib.
    """  # fmt: skip
    with session(verbose=verbose, quiet=quiet, progress=not no_progress, json=json) as ui:
        from qcompile import api

        axis, span, limits = _budgets(memory, latency)
        images = options.preprocessing(images_mean, images_std, images_resize, images_crop, images_bgr)
        found = api.sweep(
            options.existing_model(model, ()),
            target=target, axis=axis, span=span, points=points, **limits,
            calib=None if calib is None else options.source(calib, images),
            holdout=None if holdout is None else options.source(holdout, images),
            out=out, shapes=options.shapes(shape), pins=options.pins(pin), bits=options.widths(bits, "--bits"),
            act_bits=options.widths(act_bits, "--act-bits"), passes=passes, samples=samples, seed=seed,
            threads=threads, measure=not no_measure, progress=ui.stages, sensitivity=sensitivity,
            metrics=job.metrics(metric), protect=tuple(protect or ()),
        )  # fmt: skip
        ui.stages.close()
        for warning in found.warnings:
            ui.warn(warning)
        ui.result(found.to_json(), lambda console: _show(console, found))


def _budgets(memory: str | None, latency: str | None) -> tuple[str, str | None, dict[str, Any]]:
    """(axis, its range or None, the limits that hold everywhere).  Raises UsageError."""
    ranged = [text is not None and ":" in text for text in (memory, latency)]
    if all(ranged):
        raise UsageError("--memory and --latency are both ranges", hint="a front has one axis; give one size or time")
    if ranged[1] or (memory is not None and not ranged[0]):
        return "latency", latency if ranged[1] else None, {"memory": memory, "latency": None if ranged[1] else latency}
    return "memory", memory, {"latency": latency}


def _show(console: Console, found: Any) -> None:
    show(console, [_row(row, found.axis) for row in found.rows])
    metric = found.rows[0]["accuracy"]
    line(console, f"accuracy: {metric['metric']} on {metric['samples']} samples nothing else has seen")
    for path in found.files:
        line(console, f"wrote {path}")


def _row(row: dict[str, Any], axis: str) -> dict[str, Any]:
    budget = format_bytes(row["budget"]) if axis == "memory" else milliseconds(row["budget"] * 1e3)
    gap = row["gap"]
    return {
        "budget": budget, "weights": format_bytes(row["bytes"]), "latency": milliseconds(row["predicted_ms"]),
        "predicted loss": row["predicted_loss"], "measured loss": row["held_out_loss"],
        "accuracy": percent(row["accuracy"]["value"]), "drop": percent(row["accuracy"]["drop"]),
        "gap": percent(gap), "plan": row["plan"],
    }  # fmt: skip
