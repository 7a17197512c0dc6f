"""`qcompile inspect MODEL`: what is in a model, and what qcompile does not support of it."""

from __future__ import annotations

from qcompile.cli import options
from qcompile.cli.display import show
from qcompile.cli.session import session
from qcompile.errors import UnsupportedOpError


def command(
    model: options.ModelPath,
    shape: options.Shape = None,
    json: options.Json = False,
    verbose: options.Verbose = 0,
    quiet: options.Quiet = False,
) -> None:
    """Layers, shapes, sizes and unsupported operators of a model; never runs it.

    Ends with exit code 3 where the model holds something that is not supported.
    """
    with session(verbose=verbose, quiet=quiet, json=json) as ui:
        from qcompile import api

        found = api.inspect(options.existing_model(model, ()), shapes=options.shapes(shape))
        ui.result(found, lambda console: show(console, found))
        if not found["supported"]:
            ui.exit_code = UnsupportedOpError.exit_code
