"""The evaluation pack: a folder of trained networks and real data with a reader of its own."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType


def load_pack(folder: Path) -> ModuleType:
    """The pack's own reader; exits where there is none."""
    spec = importlib.util.spec_from_file_location("pack_load", folder / "load.py")
    if spec is None or spec.loader is None or not (folder / "load.py").exists():
        raise SystemExit(f"{folder} holds no load.py: give the folder of the data pack")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
