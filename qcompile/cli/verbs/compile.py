"""`qcompile MODEL`: choose the precision of every layer, build, and write an artifact."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from qcompile.cli import job_options as job
from qcompile.cli import options
from qcompile.cli.display import accuracy, line, memory_plan, milliseconds, percent, rows
from qcompile.cli.session import session
from qcompile.errors import UsageError
from qcompile.units import format_bits, format_bytes


def command(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="ONNX file.", show_default=False)] = None,
    target: job.Target = "cpu",
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="DIR", help="Artifact to write. [default: MODEL.qc here]"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an artifact that exists.")] = False,
    latency: job.Latency = None,
    memory: job.Memory = None,
    arena: Annotated[
        str | None,
        typer.Option("--arena", metavar="SIZE", rich_help_panel=job.BUDGETS, help="Activations at the peak: 256KiB."),
    ] = None,
    max_drop: Annotated[
        str | None,
        typer.Option(
            "--max-drop",
            metavar="PERCENT",
            rich_help_panel=job.BUDGETS,
            help="Make the plan as small as accuracy allows: 0.5% is half a percentage point of all held-out samples, "
            "measured. Top-1 where they have labels, else agreement with the float model. What the true drop is below "
            "with 95 % confidence (exact, one-sided, paired) is reported.",
        ),
    ] = None,
    minimize: Annotated[
        str | None,
        typer.Option(
            "--minimize",
            metavar="WHAT,…",
            rich_help_panel=job.BUDGETS,
            help="What --max-drop makes small: memory, latency, or both in order. [default: what is limited, else "
            "memory,latency]",
        ),
    ] = None,
    uniform: Annotated[
        str | None,
        typer.Option(
            "--uniform", metavar="wNaN", rich_help_panel=job.PLAN, help="The same bits for every layer: w8a8, w4a8."
        ),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option("--plan", metavar="FILE", rich_help_panel=job.PLAN, help="Bits from a file: model.qc/plan.json."),
    ] = None,
    pin: job.Pin = None,
    protect: job.Protect = None,
    rounding: job.Rounding = None,
    no_equalize: Annotated[
        bool,
        typer.Option(
            "--no-equalize",
            rich_help_panel=job.PLAN,
            help="Leave channels between layers as they are; else they are scaled so that rounding costs less.",
        ),
    ] = False,
    no_tune: Annotated[
        bool,
        typer.Option(
            "--no-tune",
            rich_help_panel=job.PLAN,
            help="Leave scales and biases as rounding found them; else they are tuned where few bits cost much.",
        ),
    ] = False,
    bits: job.WeightBits = None,
    act_bits: job.ActBits = None,
    sensitivity: job.SensitivityName = None,
    metric: job.Metric = None,
    calib: job.Calib = None,
    holdout: job.Holdout = None,
    eval_data: Annotated[
        str | None,
        typer.Option("--eval", metavar="PATH", rich_help_panel=job.DATA, help="Samples to evaluate the result on."),
    ] = None,
    samples: job.Samples = None,
    shape: options.Shape = None,
    device: options.Device = None,
    images_mean: options.ImagesMean = None,
    images_std: options.ImagesStd = None,
    images_resize: options.ImagesResize = None,
    images_crop: options.ImagesCrop = None,
    images_bgr: options.ImagesBgr = False,
    passes: job.Passes = None,
    print_pipeline: Annotated[
        bool, typer.Option("--print-pipeline", rich_help_panel=job.EXPERT, help="Show the passes and stop.")
    ] = False,
    dump: Annotated[
        Path | None,
        typer.Option("--dump", metavar="DIR", rich_help_panel=job.EXPERT, help="Write the graph after every pass."),
    ] = None,
    seed: job.Seed = 0,
    threads: job.Threads = 1,
    no_measure: job.NoMeasure = False,
    costs: job.Costs = None,
    json: options.Json = False,
    no_progress: options.NoProgress = False,
    verbose: options.Verbose = 0,
    quiet: options.Quiet = False,
) -> None:
    """Compile a model to integer-only code, with bits per layer that keep the budgets.

    `qcompile MODEL` is short for `qcompile compile MODEL`.  Quantities need their unit.
    """
    with session(verbose=verbose, quiet=quiet, progress=not no_progress, json=json) as ui:
        if print_pipeline:
            ui.result(_pipeline(), _show_pipeline)
            return
        if model is None:
            raise UsageError("name the model to compile", hint="qcompile MODEL --latency 5ms, or qcompile --help")
        from qcompile import api
        from qcompile.cli.app import VERBS

        options.existing_model(model, VERBS)
        images = options.preprocessing(images_mean, images_std, images_resize, images_crop, images_bgr)
        destination = out if out is not None else Path(f"{Path(model).stem}.qc")
        dropped = max_drop and f"at most {max_drop} lost"
        asked = [text for text in (latency, memory, arena, dropped, uniform, plan and f"plan {plan}") if text]
        ui.say(f"qcompile  {Path(model).name} → {target}  {', '.join(map(str, asked)) or 'no budget'}")
        result = api.compile(
            model,
            target=target,
            latency=latency,
            memory=memory,
            arena=arena,
            uniform=uniform,
            plan=plan,
            calib=None if calib is None else options.source(calib, images),
            eval_data=None if eval_data is None else options.source(eval_data, images),
            out=destination,
            shapes=options.shapes(shape),
            pins=options.pins(pin),
            bits=options.widths(bits, "--bits"),
            act_bits=options.widths(act_bits, "--act-bits"),
            passes=passes,
            dump=dump,
            samples=samples,
            seed=seed,
            threads=threads,
            overwrite=force,
            measure=not no_measure,
            progress=ui.stages,
            max_drop=max_drop,
            minimize=job.names(minimize),
            holdout=None if holdout is None else options.source(holdout, images),
            sensitivity=sensitivity,
            metrics=job.metrics(metric),
            protect=tuple(protect or ()),
            rounding=rounding,
            equalize=not no_equalize,
            tune=not no_tune,
            device=device,
            costs=costs,
        )
        ui.stages.close()
        for warning in result.warnings:
            ui.warn(warning)
        ui.result(result.to_json(), lambda console: _show(console, result, destination, latency, memory, arena))


def _show(console: Console, result: Any, out: Path, latency: str | None, memory: str | None, arena: str | None) -> None:
    solver, evaluation = result.solver, result.evaluation or {}
    guessed = "estimated, not measured" if result.measured_ms is None else "predicted"
    times = [
        f"{milliseconds(ms)} {how}"
        for ms, how in ((result.predicted_ms, guessed), (result.measured_ms, "measured"))
        if ms is not None
    ]
    gap = solver.get("gap")
    kinds = Counter(format_bits(pair) for pair in result.bits.values())
    rows(
        console,
        [
            ("latency", _against(", ".join(times), latency)),
            ("weights", _against(format_bytes(result.weight_bytes), memory)),
            ("arena", _against(memory_plan(result.arena_bytes, result.arena_bound), arena)),
            ("plan", f"{solver.get('status')}" + ("" if gap is None else f", gap {100 * gap:.2f} %")),
            ("layers", ", ".join(f"{count} × {kind}" for kind, count in sorted(kinds.items(), reverse=True))),
            ("accuracy", accuracy(result.accuracy)),
            ("top-1", percent(evaluation.get("top1"))),
            ("agreement", percent(evaluation.get("agreement"))),
        ],
    )
    line(console, f"wrote {out}   why these bits: qcompile explain {out}")


def _against(value: str, budget: str | None) -> str:
    return value if budget is None else f"{value}   budget {budget}"


def _pipeline() -> dict[str, list[str]]:
    from qcompile import pipelines

    names = ("CANONICALIZE", "CALIBRATE", "ANALYSIS", "ROUND", "QUANTIZE", "LOWER")
    return {name.lower(): list(getattr(pipelines, name)) for name in names}


def _show_pipeline(console: Console) -> None:
    rows(console, [(phase, ",".join(specs)) for phase, specs in _pipeline().items()])
