"""qcompile: trained networks become integer-only code whose per-layer precision is chosen for a device.

`compile`, `capture`, `PassManager` and `target` are the whole of most programs.  Importing this package is light;
torch, onnx and TVM load when they are used.  `qcompile.capture(model)` and `qcompile.target(name)` are calls of the
subpackages of those names.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

from qcompile import capture as capture
from qcompile import target as target

if TYPE_CHECKING:
    from qcompile.api import bench as bench
    from qcompile.api import compile as compile
    from qcompile.api import evaluate as evaluate
    from qcompile.api import explain as explain
    from qcompile.api import inspect as inspect
    from qcompile.api import run as run
    from qcompile.api import verify as verify
    from qcompile.artifact import load as load
    from qcompile.ir import Graph as Graph
    from qcompile.pm.base import Pass as Pass
    from qcompile.pm.manager import PassManager as PassManager
    from qcompile.pm.registry import find_target as find_target
    from qcompile.target.model import Target as Target

_PUBLIC = {
    **dict.fromkeys(("bench", "compile", "evaluate", "explain", "inspect", "run", "verify"), "qcompile.api"),
    "load": "qcompile.artifact",
    "Graph": "qcompile.ir",
    "Pass": "qcompile.pm.base",
    "PassManager": "qcompile.pm.manager",
    "find_target": "qcompile.pm.registry",
}

__all__ = sorted([*_PUBLIC, "capture", "target"])


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'qcompile' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


class _Capture(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Graph:
        """See `qcompile.api.capture`."""
        found: Graph = importlib.import_module("qcompile.api").capture(*args, **kwargs)
        return found


class _Target(ModuleType):
    def __call__(self, name: str = "cpu") -> Target:
        """The target of a name, as data; see `qcompile.pm.registry.find_target`."""
        found: Target = importlib.import_module("qcompile.pm.registry").find_target(name)
        return found


# A function of the same name would be replaced by the subpackage as soon as anything imports it.
capture.__class__ = _Capture
target.__class__ = _Target
