"""Where messages go: one logger for all of qcompile, silent until the command line (or a user) listens.

Library code logs with `logging.getLogger("qcompile.…")`, and calls `note` for the facts on a stage's line.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

ROOT = "qcompile"
_LEVELS = {0: logging.WARNING, 1: logging.INFO}

Write = Callable[[int, str], None]
"""Shows a message of a level of `logging`."""


def note(text: str, *args: object) -> None:
    """State a fact about the stage that is running: `note("%d nodes", 62)` ends up on its line."""
    logging.getLogger(ROOT).info(text, *args, extra={"note": True})


class Forward(logging.Handler):
    """Hands notes to one function and messages from a level on to another."""

    def __init__(self, level: int, show: Write, on_note: Callable[[str], None]) -> None:
        super().__init__()
        self.threshold, self.show, self.on_note = level, show, on_note

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
            if getattr(record, "note", False):
                self.on_note(text)
            elif record.levelno >= self.threshold:
                self.show(record.levelno, text)
        except Exception:
            self.handleError(record)


@contextmanager
def listening(verbosity: int, show: Write, on_note: Callable[[str], None]) -> Iterator[None]:
    """Show qcompile's messages while the block runs.

    Args:
        verbosity: 0 shows warnings and errors, 1 also what is done, 2 everything and Python's own warnings.
    """
    level = _LEVELS.get(verbosity, logging.DEBUG)
    ours, python = logging.getLogger(ROOT), logging.getLogger("py.warnings")
    before = (ours.level, ours.propagate, python.propagate)
    handler = Forward(level, show, on_note)
    ours.addHandler(handler)
    ours.setLevel(min(level, logging.INFO))
    ours.propagate = python.propagate = False
    # Libraries warn about themselves; that is no business of who compiles a model.
    quiet: logging.Handler = handler if verbosity >= 2 else logging.NullHandler()
    python.addHandler(quiet)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        ours.removeHandler(handler)
        python.removeHandler(quiet)
        ours.setLevel(before[0])
        ours.propagate, python.propagate = before[1:]
