"""`qcompile eval ARTIFACT`: accuracy on data, and agreement with the float model."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from qcompile.cli import options
from qcompile.cli.display import cell, percent, rows
from qcompile.cli.session import session


def command(
    artifact: options.ArtifactPath,
    data: options.Data,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="FILE", help="The float model: also says how often the two agree."),
    ] = None,
    images_mean: options.ImagesMean = None,
    images_std: options.ImagesStd = None,
    images_resize: options.ImagesResize = None,
    images_crop: options.ImagesCrop = None,
    images_bgr: options.ImagesBgr = False,
    json: options.Json = False,
    no_progress: options.NoProgress = False,
    verbose: options.Verbose = 0,
    quiet: options.Quiet = False,
) -> None:
    """Top-1 accuracy and loss where the data has `labels`; agreement with a float model that is given."""
    with session(verbose=verbose, quiet=quiet, progress=not no_progress, json=json) as ui:
        from qcompile import api

        images = options.preprocessing(images_mean, images_std, images_resize, images_crop, images_bgr)
        if model is not None:
            options.existing_model(model, ())
        ui.stages("evaluate", 0, 0)
        found = api.evaluate(artifact, options.source(data, images), model=model)

        def show(console: Console) -> None:
            rows(
                console,
                [
                    ("samples", str(found["n"])),
                    ("top-1", percent(found["top1"])),
                    ("agreement", percent(found["agreement"])),
                    ("loss", cell(found["loss"])),
                ],
            )

        ui.result(found, show)
