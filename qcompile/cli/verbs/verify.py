"""`qcompile verify ARTIFACT`: no floating point inside, and bit-exact results."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from qcompile.cli import options
from qcompile.cli.display import line, rows
from qcompile.cli.session import failed, session


def command(
    artifact: options.ArtifactPath,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="PATH", help="Samples to compare; without it the golden ones in the artifact."),
    ] = None,
    device: options.Device = None,
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
    """Look for floating-point operations, and compare every output integer with the reference.

    Between integer input and integer output neither the generated code nor the machine code may hold any.
    Ends with exit code 7 where it does, or where an integer differs.
    """
    with session(verbose=verbose, quiet=quiet, progress=not no_progress, json=json) as ui:
        from qcompile import api

        images = options.preprocessing(images_mean, images_std, images_resize, images_crop, images_bgr)
        ui.stages("verify", 0, 0)
        found = api.verify(artifact, data=None if data is None else options.source(data, images), device=device)
        bad = bool(found["differing_integers"] or found["float_operations"])

        def show(console: Console) -> None:
            rows(
                console,
                [
                    ("inputs compared", str(found["inputs"])),
                    ("differing integers", str(found["differing_integers"])),
                    (
                        "float operations",
                        str(found["float_operations"]),
                    ),
                ],
            )
            for operation in found.get("found", ()):
                line(console, f"  {operation}")
            line(console, "FAILED" if bad else "integer-only, and equal to the reference bit for bit")

        ui.result(found, show)
        failed(ui, bad)
