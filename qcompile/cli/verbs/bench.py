"""`qcompile bench ARTIFACT`: latency of one sample."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from qcompile.cli import options
from qcompile.cli.display import milliseconds, rows
from qcompile.cli.session import session


def command(
    artifact: options.ArtifactPath,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads the library may use.")] = 1,
    runs: Annotated[
        int, typer.Option("--runs", min=0, help="Timed calls; 0 takes as many as a stable median needs.")
    ] = 0,
    device: options.Device = None,
    json: options.Json = False,
    no_progress: options.NoProgress = False,
    verbose: options.Verbose = 0,
    quiet: options.Quiet = False,
) -> None:
    """Time single samples on this machine, from integer input to integer output."""
    with session(verbose=verbose, quiet=quiet, progress=not no_progress, json=json) as ui:
        from qcompile import api

        ui.stages("measure", 0, 0)
        found = api.bench(artifact, threads, runs, device)

        def show(console: Console) -> None:
            conditions = [_count(found["threads"], "thread"), _count(found["runs"], "run"), "batch 1"]
            rows(
                console,
                [
                    ("median", milliseconds(found["median_ms"])),
                    ("p90", milliseconds(found["p90_ms"])),
                    ("conditions", ", ".join(conditions)),
                ],
            )

        ui.result(found, show)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
