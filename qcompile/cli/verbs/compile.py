"""`qcompile MODEL`: choose the precision of every layer, build, and write an artifact."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from qcompile.cli import options
from qcompile.cli.display import line, milliseconds, percent, rows
from qcompile.cli.session import session
from qcompile.errors import UsageError
from qcompile.units import format_bits, format_bytes

_BUDGETS, _DATA, _PLAN, _EXPERT = "Budgets", "Data", "Precision", "Inside the compiler"


def command(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="ONNX file.", show_default=False)] = None,
    target: Annotated[
        str,
        typer.Option("-t", "--target", help="Machine to compile for: cpu is this one; see `qcompile targets`."),
    ] = "cpu",
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="DIR", help="Artifact to write. [default: MODEL.qc here]"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an artifact that exists.")] = False,
    latency: Annotated[
        str | None,
        typer.Option(
            "--latency",
            metavar="TIME",
            rich_help_panel=_BUDGETS,
            help="One sample, end to end: 5ms, 800us, 0.1s.",
        ),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option("--memory", metavar="SIZE", rich_help_panel=_BUDGETS, help="Packed weights: 4MiB, 300kB."),
    ] = None,
    arena: Annotated[
        str | None,
        typer.Option("--arena", metavar="SIZE", rich_help_panel=_BUDGETS, help="Activations at the peak: 256KiB."),
    ] = None,
    uniform: Annotated[
        str | None,
        typer.Option(
            "--uniform",
            metavar="wNaN",
            rich_help_panel=_PLAN,
            help="The same bits for every layer: w8a8, w4a8.",
        ),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option("--plan", metavar="FILE", rich_help_panel=_PLAN, help="Bits from a file: model.qc/plan.json."),
    ] = None,
    pin: Annotated[
        list[str] | None,
        typer.Option(
            "--pin",
            metavar="REGEX=wNaN",
            rich_help_panel=_PLAN,
            help="Fix the bits of matching layers. Repeat.",
        ),
    ] = None,
    bits: Annotated[
        str | None,
        typer.Option("--bits", metavar="N,…", rich_help_panel=_PLAN, help="Weight bits to choose from: 2,4,8."),
    ] = None,
    act_bits: Annotated[
        str | None,
        typer.Option("--act-bits", metavar="N,…", rich_help_panel=_PLAN, help="Activation bits to choose from: 4,8."),
    ] = None,
    calib: Annotated[
        str | None,
        typer.Option(
            "-c",
            "--calib",
            metavar="PATH",
            rich_help_panel=_DATA,
            help="Calibration samples: .npz or folder of images. Without it accuracy is unverified.",
        ),
    ] = None,
    eval_data: Annotated[
        str | None,
        typer.Option("--eval", metavar="PATH", rich_help_panel=_DATA, help="Samples to evaluate the result on."),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            "--samples",
            min=1,
            rich_help_panel=_DATA,
            help="Most calibration samples to use.",
            show_default=False,
        ),
    ] = None,
    shape: options.Shape = None,
    images_mean: options.ImagesMean = None,
    images_std: options.ImagesStd = None,
    images_resize: options.ImagesResize = None,
    images_crop: options.ImagesCrop = None,
    images_bgr: options.ImagesBgr = False,
    passes: Annotated[
        str | None,
        typer.Option(
            "--passes",
            metavar="SPEC",
            rich_help_panel=_EXPERT,
            help="Passes on the float graph instead of ours.",
        ),
    ] = None,
    print_pipeline: Annotated[
        bool, typer.Option("--print-pipeline", rich_help_panel=_EXPERT, help="Show the passes and stop.")
    ] = False,
    dump: Annotated[
        Path | None,
        typer.Option("--dump", metavar="DIR", rich_help_panel=_EXPERT, help="Write the graph after every pass."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, rich_help_panel=_EXPERT)] = 0,
    threads: Annotated[
        int, typer.Option("--threads", min=1, rich_help_panel=_EXPERT, help="That measured code may use.")
    ] = 1,
    no_measure: Annotated[
        bool,
        typer.Option("--no-measure", rich_help_panel=_EXPERT, help="Estimate costs, run nothing on the device."),
    ] = False,
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
        asked = [text for text in (latency, memory, arena, uniform, plan and f"plan {plan}") if text]
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
        )
        ui.stages.close()
        for warning in result.warnings:
            ui.warn(warning)
        ui.result(result.to_json(), lambda console: _show(console, result, destination, latency, memory, arena))


def _show(console: Console, result: Any, out: Path, latency: str | None, memory: str | None, arena: str | None) -> None:
    solver, evaluation = result.solver, result.evaluation or {}
    times = [
        f"{milliseconds(ms)} {how}"
        for ms, how in ((result.predicted_ms, "predicted"), (result.measured_ms, "measured"))
        if ms is not None
    ]
    gap = solver.get("gap")
    kinds = Counter(format_bits(pair) for pair in result.bits.values())
    rows(
        console,
        [
            ("latency", _against(", ".join(times), latency)),
            ("weights", _against(format_bytes(result.weight_bytes), memory)),
            ("arena", _against(format_bytes(result.arena_bytes), arena)),
            ("plan", f"{solver.get('status')}" + ("" if gap is None else f", gap {100 * gap:.2f} %")),
            ("layers", ", ".join(f"{count} × {kind}" for kind, count in sorted(kinds.items(), reverse=True))),
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
