"""`qcompile run ARTIFACT`: outputs of an artifact on data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from qcompile.cli import options
from qcompile.cli.display import show
from qcompile.cli.session import session


def command(
    artifact: options.ArtifactPath,
    data: options.Data,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="FILE", help=".npz to write, one float32 array per output."),
    ] = None,
    samples: Annotated[int | None, typer.Option("--samples", min=1, help="Most samples to run.")] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Threads to use; by default as many as it was compiled for.")
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
    """Run an artifact on data, in the float model's own units, and write its outputs."""
    with session(verbose=verbose, quiet=quiet, progress=not no_progress, json=json) as ui:
        from qcompile import artifact as artifacts
        from qcompile.artifact.files import write_file
        from qcompile.data import load_batches
        from qcompile.data.npz import npz_bytes
        from qcompile.target.device import parse_device

        opened = artifacts.load(artifact, threads)
        if device is not None:
            opened = opened.on(parse_device(device))
        images = options.preprocessing(images_mean, images_std, images_resize, images_crop, images_bgr)
        dataset = load_batches(options.source(data, images), opened.graph.inputs, limit=samples)
        parts, done = [], 0
        for batch in dataset():
            parts.append(opened.run({port.name: batch[port.name] for port in opened.graph.inputs}))
            done += len(next(iter(batch.values())))
            ui.stages("run", done, len(dataset))
        outputs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        if out is not None:
            write_file(out, npz_bytes(outputs))
        found: dict[str, Any] = {
            "n": len(dataset),
            "file": None if out is None else str(out),
            "outputs": {name: _facts(array) for name, array in outputs.items()},
        }
        ui.result(found, lambda console: show(console, found))


def _facts(array: np.ndarray[Any, Any]) -> dict[str, Any]:
    return {
        "shape": list(array.shape),
        "min": float(array.min()),
        "max": float(array.max()),
        "mean": float(array.mean()),
    }
