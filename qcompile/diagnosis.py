"""What this machine can compile, run and measure, and what would have to be installed for the rest."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
from typing import Any

from qcompile.errors import InstallError, StorageError, TargetError
from qcompile.pm.registry import find_target, host_features, target_names
from qcompile.target.cost import CostCache
from qcompile.target.device import UNTRUSTED
from qcompile.target.model import Target, host_architecture

_PACKAGES = {
    # distribution → what it is for, and whether nothing works without it
    "numpy": ("everything", True),
    "apache-tvm": ("generating code, and RPC", True),
    "torch": ("gradients and Hessians", True),
    "onnx": ("reading models", True),
    "onnxruntime": ("checking captured models", True),
    "pulp": ("choosing bits", True),
    "highspy": ("choosing bits", True),
    "numba": ("rounding weights", True),
    "Pillow": ("folders of images: pip install 'qcompile[images]'", False),
    "matplotlib": ("plots: pip install 'qcompile[plot]'", False),
}
_PROGRAMS = {
    "objdump": "searching libraries for floating point: install binutils",
    "qemu-aarch64": "running AArch64 code here: install qemu-user",
    "qemu-arm": "running 32-bit Arm code here: install qemu-user",
    "cmake": "one of the two ways to build exported programs: install cmake",
}


def target_facts(target: Target) -> dict[str, Any]:
    """What this machine can do for a target.

    Returns:
        compiles: whether libraries can be built. runs: `natively`, `emulated` or `no`. measures: whether times taken
        here are true; other machines are measured with --device. runs_here: natively. lacks: instruction sets this
        processor does not have. missing: what to install, in words.
    """
    missing: list[str] = []
    compiles = _compiles(target, missing)
    ours = target.architecture in ("", host_architecture())
    lacks = sorted(set(target.features) - host_features()) if ours else [target.architecture]
    runs = "natively" if ours and not lacks and compiles else "no"
    if not ours and compiles and (emulator := target.options.get("emulator", "").split()):
        if shutil.which(emulator[0]):
            runs = "emulated"
        else:
            missing.append(f"{emulator[0]} to run it here: install qemu-user")
    return {
        "compiles": compiles, "runs": runs, "measures": runs == "natively", "runs_here": ours and not lacks,
        "lacks": lacks, "missing": missing,
    }  # fmt: skip


def _compiles(target: Target, missing: list[str]) -> bool:
    """Whether the backend can be imported and its tools are there; adds what is not."""
    try:
        module, _, name = target.toolchain.partition(":")
        if module:
            getattr(importlib.import_module(module), name)(target.options)
    except (TargetError, InstallError) as error:
        missing.append(error.hint or error.message)
    except ImportError as error:
        missing.append(f"{error.name or error}: install qcompile with all it depends on")
    return not missing


def diagnose() -> dict[str, Any]:
    """The machine, the packages, the programs, the targets, the cost cache, and what is wrong with them.

    Returns:
        `problems` lists what keeps qcompile from working at all; `missing` what would let it do more.
    """
    packages = {name: _version(name) for name in _PACKAGES}
    programs = {name: shutil.which(name) is not None for name in _PROGRAMS}
    targets = {name: _without_host(target_facts(find_target(name))) for name in target_names()}
    problems = [f"{n}: not installed ({_PACKAGES[n][0]})" for n, v in packages.items() if v is None and _PACKAGES[n][1]]
    missing = [f"{n}: {_PACKAGES[n][0]}" for n, v in packages.items() if v is None and not _PACKAGES[n][1]]
    missing += [f"{name}: {_PROGRAMS[name]}" for name, found in programs.items() if not found]
    missing += [f"{name}: {what}" for name, facts in targets.items() for what in facts["missing"]]
    cache, fault = _cache()
    if fault:
        problems.append(fault)
    if not any(facts["runs"] == "natively" for name, facts in targets.items() if name != "reference"):
        problems.append("no target but the reference can be compiled and run here")
    return {
        "machine": {
            "architecture": host_architecture(), "system": platform.platform(), "python": sys.version.split()[0],
            "cpus": os.cpu_count(),
        },
        "packages": {name: version or "not installed" for name, version in packages.items()},
        "programs": programs,
        "cost_cache": cache,
        "targets": targets,
        "devices": f"others by --device rpc://HOST:PORT?key=KEY. {UNTRUSTED}",
        "missing": missing,
        "problems": problems,
    }  # fmt: skip


def _without_host(facts: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in facts.items() if key != "runs_here"}


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cache() -> tuple[str, str | None]:
    """Where measurements are kept, and what is wrong with the place."""
    cache = CostCache()
    try:
        cache.get_many([], 1, "")
    except StorageError as error:
        return str(cache.path), error.message
    return str(cache.path), None
