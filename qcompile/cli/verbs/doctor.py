"""`qcompile doctor`: what works here, and what to install for the rest."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from qcompile.cli import options
from qcompile.cli.display import line, rows, show
from qcompile.cli.session import session
from qcompile.errors import InstallError


def command(json: options.Json = False, verbose: options.Verbose = 0, quiet: options.Quiet = False) -> None:
    """Say what this machine can compile, run and measure, and what is missing for the rest.

    Ends with exit code 2 where qcompile cannot work at all.
    """
    with session(verbose=verbose, quiet=quiet, json=json) as ui:
        from qcompile import api

        found = api.doctor()
        ui.result(found, lambda console: _show(console, found))
        if found["problems"]:
            ui.exit_code = InstallError.exit_code


def _show(console: Console, found: dict[str, Any]) -> None:
    rows(console, [(name, str(value)) for name, value in found["machine"].items()])
    rows(console, [("cost cache", found["cost_cache"]), ("devices", found["devices"])])
    show(console, {name: {"installed": version} for name, version in found["packages"].items()}, "packages")
    targets = {name: {k: v for k, v in facts.items() if k != "missing"} for name, facts in found["targets"].items()}
    show(console, targets, "targets")
    for title, lines in (("missing", found["missing"]), ("problems", found["problems"])):
        if lines:
            line(console, f"\n{title}")
        for text in lines:
            line(console, f"  {text}")
    line(console, "\n" + ("some of it does not work" if found["problems"] else "all that is needed is here"))
