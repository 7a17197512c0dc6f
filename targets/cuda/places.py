"""Where NVIDIA's tools and libraries may lie."""

from __future__ import annotations

import importlib.util
from pathlib import Path

HOME = "CUDA_HOME"
"""The variable that names a toolkit's folder."""

_PACKAGES = ("nvidia.cu13", "nvidia.cuda_nvrtc", "nvidia.cuda_nvcc")
"""Of NVIDIA's wheels: one folder for all since CUDA 13, one for each before."""


def package_folders() -> list[Path]:
    """The folders of NVIDIA's Python packages that are installed."""
    found: list[Path] = []
    for package in _PACKAGES:
        try:
            spec = importlib.util.find_spec(package)
        except ModuleNotFoundError:
            continue
        found += [Path(root) for root in (spec.submodule_search_locations or [])] if spec else []
    return found
