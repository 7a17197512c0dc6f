"""`qcompile targets`: the machines qcompile generates code for."""

from __future__ import annotations

from qcompile.cli import options
from qcompile.cli.display import show
from qcompile.cli.session import session


def command(json: options.Json = False, verbose: options.Verbose = 0, quiet: options.Quiet = False) -> None:
    """List the targets, what they need, and which of them run on this machine."""
    with session(verbose=verbose, quiet=quiet, json=json) as ui:
        from qcompile import api

        found = api.targets()
        ui.result({"targets": found}, lambda console: show(console, found))
