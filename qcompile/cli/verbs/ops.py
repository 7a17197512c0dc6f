"""`qcompile ops`: the operators qcompile understands."""

from __future__ import annotations

from qcompile.cli import options
from qcompile.cli.display import show
from qcompile.cli.session import session


def command(json: options.Json = False, verbose: options.Verbose = 0, quiet: options.Quiet = False) -> None:
    """List the operators that a model may hold, by their names in ONNX and here."""
    with session(verbose=verbose, quiet=quiet, json=json) as ui:
        from qcompile import api

        found = api.ops()
        ui.result({"ops": found}, lambda console: show(console, found))
