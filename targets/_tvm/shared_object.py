"""Opening shared objects."""

from __future__ import annotations

import ctypes
from pathlib import Path
from tempfile import TemporaryDirectory

_opened: set[str] = set()
"""Names this process has opened; it keeps what lay there."""


def open_shared_object(path: Path) -> ctypes.CDLL:
    """A shared object as it lies in a file now.

    The dynamic linker never opens a name again that it has open, though another artifact may lie there by now, with
    other code for other parameters.  So it is given a new name then.
    """
    name = str(path.resolve())
    if name not in _opened:
        _opened.add(name)
        return ctypes.CDLL(name)
    with TemporaryDirectory(prefix="qcompile-") as folder:
        other = Path(folder) / path.name
        other.symlink_to(name)
        return ctypes.CDLL(str(other))
