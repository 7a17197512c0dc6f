"""Opening shared objects."""

from __future__ import annotations

import ctypes
from pathlib import Path
from tempfile import TemporaryDirectory


def open_shared_object(path: Path) -> ctypes.CDLL:
    """A shared object as it lies in a file now.

    The dynamic linker never opens a name again that it has open, though another artifact may lie there by now, with
    other code for other parameters.  So every call opens a name of its own.
    """
    with TemporaryDirectory(prefix="qcompile-") as folder:
        name = Path(folder) / path.name
        name.symlink_to(path.resolve())
        return ctypes.CDLL(str(name))
