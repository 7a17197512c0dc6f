"""`qcompile export ARTIFACT`: C files for somebody else's build."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from qcompile.cli import options
from qcompile.cli.display import rows
from qcompile.cli.session import session
from qcompile.units import format_bytes


def command(
    artifact: options.ArtifactPath,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Folder to write.")],
    format: Annotated[str, typer.Option("--format", help="c: C files, and objects unless the target is c.")] = "c",
    target: Annotated[
        str | None,
        typer.Option("-t", "--target", help="Another target than the artifact's; c is portable C.", show_default=False),
    ] = None,
    prefix: Annotated[
        str, typer.Option("--prefix", help="Of files and symbols; programs with different ones link together.")
    ] = "model",
    fast: Annotated[
        bool, typer.Option("--fast", help="Keep the fastest kernels; without it those with the smallest parameters.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
    json: options.Json = False,
    verbose: options.Verbose = 0,
    quiet: options.Quiet = False,
) -> None:
    """Write an artifact as C: no Python, no TVM, no allocation, no threads, one static arena.

    The folder holds a header, the program, an example, a self-test with the reference's integers, and build files.
    """
    with session(verbose=verbose, quiet=quiet, json=json) as ui:
        from qcompile import api

        found = api.export(artifact, out, format=format, target=target, prefix=prefix, fast=fast, overwrite=force)

        def show(console: Console) -> None:
            code = found["code_bytes"]
            rows(
                console,
                [
                    ("written", str(out)),
                    ("target", str(found["target"])),
                    ("code", "compile it to know" if code is None else format_bytes(code)),
                    ("parameters", format_bytes(found["parameter_bytes"])),
                    ("arena", format_bytes(found["arena_bytes"])),
                    ("links against", _needs(found)),
                    ("next", f"make -C {out} test"),
                ],
            )

        ui.result(found, show)


def _needs(found: dict[str, Any]) -> str:
    return ", ".join(found["undefined_symbols"]) or "nothing but what the compiler makes of loops: memcpy, memset"
