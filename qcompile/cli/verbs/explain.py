"""`qcompile explain ARTIFACT`: why the layers have the bits they have."""

from __future__ import annotations

from typing import Annotated

import typer

from qcompile.cli import options
from qcompile.cli.display import show
from qcompile.cli.session import session


def command(
    artifact: options.ArtifactPath,
    layer: Annotated[
        str | None, typer.Argument(metavar="[LAYER]", help="One layer: its choices, costs and ties.")
    ] = None,
    json: options.Json = False,
    verbose: options.Verbose = 0,
    quiet: options.Quiet = False,
) -> None:
    """What each layer costs and loses at its bits, the plans that were compared, what budgets cost."""
    with session(verbose=verbose, quiet=quiet, json=json) as ui:
        from qcompile import api

        found = api.explain(artifact, layer=layer)
        ui.result(found, lambda console: show(console, found))
