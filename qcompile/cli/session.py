"""One run of a verb: where its output goes, and what its errors become."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from qcompile import logs
from qcompile.artifact.canonical import canonical_json
from qcompile.cli.display import Show
from qcompile.cli.progress import Stages
from qcompile.errors import InternalError, QcompileError, StorageError, VerificationError

INTERRUPTED = 130
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.ENOMEM})
_COLOURS = {"warning": "bold yellow", "error": "bold red", "internal error": "bold red"}


class Session:
    """What a verb talks to.

    Attributes:
        errors: console of standard error.
        stages: progress callback for the API.
    """

    def __init__(self, *, verbose: int, quiet: bool, progress: bool, json: bool) -> None:
        self.verbose, self.quiet, self.json = verbose, quiet, json
        self.errors = Console(stderr=True, soft_wrap=True)
        live = progress and not quiet and self.errors.is_terminal
        self.stages = Stages(self.errors, live, lines=not quiet)
        self.exit_code = 0
        self._result: tuple[Any, Show] | None = None

    def result(self, value: Any, show: Show) -> None:
        """What the verb found: `value` is printed with --json, `show` prints it for people."""
        self._result = value, show

    def say(self, text: str) -> None:
        """A line on standard error, unless --quiet."""
        if not self.quiet:
            self.errors.print(text, markup=False, highlight=False)

    def warn(self, text: str) -> None:
        """A warning, also with --quiet."""
        self.tell("warning", text)

    def tell(self, kind: str, text: str) -> None:
        self.errors.print(Text(f"{kind}: ", style=_COLOURS.get(kind, "")) + Text(text), highlight=False)

    def show_log(self, level: int, text: str) -> None:
        """A message of the log."""
        if level >= logging.WARNING:
            self.tell("warning" if level < logging.ERROR else "error", text)
        else:
            self.errors.print(text, markup=False, highlight=False, style="dim")

    def print_result(self) -> None:
        """Print the result on standard output."""
        if self._result is None:
            return
        value, show = self._result
        if self.json:
            sys.stdout.write(canonical_json(value))
            sys.stdout.flush()
        else:
            show(Console(soft_wrap=False, width=None if sys.stdout.isatty() else 160))


@contextmanager
def session(*, verbose: int = 0, quiet: bool = False, progress: bool = False, json: bool = False) -> Iterator[Session]:
    """Run a verb: everything printed meanwhile goes to standard error, every error becomes an exit code."""
    ui = Session(verbose=verbose, quiet=quiet, progress=progress, json=json)
    try:
        with _terminable(), _only_standard_error(), logs.listening(verbose, ui.show_log, ui.stages.note):
            yield ui
            ui.stages.close()
        ui.print_result()
    except typer.Exit:
        raise
    except BrokenPipeError:
        # Whoever read our output has left; there is nothing to tell anybody.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    except BaseException as error:
        ui.stages.abandon()
        raise typer.Exit(report(ui, error)) from None
    if ui.exit_code:
        raise typer.Exit(ui.exit_code)


def report(ui: Session, error: BaseException) -> int:
    """Say what went wrong; the exit code that goes with it.  Anything but an error is raised again."""
    if isinstance(error, KeyboardInterrupt):
        ui.tell("error", "interrupted; no artifact was written")
        return INTERRUPTED
    if isinstance(error, MemoryError):
        return _report_known(ui, StorageError("out of memory", hint="give fewer samples, or a smaller model"))
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        return _report_known(ui, StorageError(str(error), hint="free some space"))
    if isinstance(error, QcompileError) and not isinstance(error, InternalError):
        return _report_known(ui, error)
    if not isinstance(error, Exception):
        raise error
    if ui.verbose:
        ui.errors.print("".join(traceback.format_exception(error)), markup=False, highlight=False)
    first = (str(error).splitlines() or [""])[0]
    what = first if isinstance(error, InternalError) else f"{type(error).__name__}: {first}".rstrip(": ")
    ui.tell("internal error", f"{what}; please report it with what the same command prints with -v")
    return InternalError.exit_code


def _report_known(ui: Session, error: QcompileError) -> int:
    ui.tell("error", str(error))
    return error.exit_code


def failed(ui: Session, failure: bool) -> None:
    """Make the verb end with the exit code of a failed verification."""
    if failure:
        ui.exit_code = VerificationError.exit_code


@contextmanager
def _only_standard_error() -> Iterator[None]:
    """Send what anybody prints, native libraries too, to standard error; standard output is for results."""
    sys.stdout.flush()
    try:
        held = os.dup(1)
    except OSError:  # there is no standard output
        held = -1
    if held >= 0:
        os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        if held >= 0:
            os.dup2(held, 1)
            os.close(held)


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the run as Ctrl-C does, so that half-written files are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
