"""Find passes and targets by name: ours from the two catalogues, others from entry points.  Imports on first
use.

A third party adds a pass with the entry point group `qcompile.passes` and a target with `qcompile.targets`;
the entry point's name is the kebab-case name.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import platform
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from qcompile.errors import DeviceError, InstallError, TargetError, UsageError
from qcompile.pm.base import Pass
from qcompile.target.device import Device, Portable
from qcompile.target.model import Target, host_architecture

if TYPE_CHECKING:
    from qcompile.ir import Graph
    from qcompile.target.backend import Backend, Executable

API = 1
"""The marker our packages `passes` and `targets` carry."""

CPU = "cpu"
"""The name that stands for the best target this processor can run."""


def find_pass(name: str) -> type[Pass]:
    """The class of a pass.

    Raises:
        UsageError: there is no pass of this name.
        InstallError: the package `passes` is not ours, or the pass cannot be imported.
    """
    found = _load(name, _catalogue("passes"), "pass", UsageError)
    if not (isinstance(found, type) and issubclass(found, Pass)):
        raise InstallError(f"pass {name!r} is registered as {found!r}, which is not a subclass of Pass")
    return found


def find_target(name: str) -> Target:
    """A target by name; `cpu` is the best one for this processor (`host_target`).

    Raises:
        TargetError: there is no target of this name, or none for this processor.
        InstallError: the package `targets` is not ours, or the target cannot be imported.
    """
    if name == CPU:
        return host_target()
    found = _load(name, _catalogue("targets"), "target", TargetError)
    if not isinstance(found, Target):
        raise InstallError(f"target {name!r} is registered as {found!r}, which is not a Target")
    return found


def pass_names() -> tuple[str, ...]:
    """All passes, in the order of the catalogue, then those of third parties."""
    return tuple(_catalogue("passes"))


def target_names() -> tuple[str, ...]:
    """All targets, in the order of the catalogue, then those of third parties; `cpu` is not among them."""
    return tuple(_catalogue("targets"))


def shipped_costs(target: Target) -> Path | None:
    """The file of costs that were measured on a device of a target and come with it, if there is one."""
    path = Path(str(_package("targets").__file__)).parent / "costs" / f"{target.name.replace(':', '-')}.json"
    return path if path.is_file() else None


def find_backend(target: Target) -> Backend:
    """The code generator of a target, made from the target; this is what imports a compiler.

    Raises:
        InstallError: it cannot be imported.
    """
    backend: Backend = _import(target.backend, f"the backend of target {target.name!r}")(target)
    return backend


def backend_on(target: Target, device: Device | None) -> Backend:
    """A target's code generator, measuring on a device where one is named.

    Raises:
        DeviceError: the target's code cannot run elsewhere.
        InstallError: as `find_backend`.
    """
    backend = find_backend(target)
    if device is None:
        return backend
    if not isinstance(backend, Portable):
        raise DeviceError(f"{target.name} runs on this machine only", hint="leave --device out")
    return backend.on(device)


def load_executable(target: Target, directory: Path, graph: Graph) -> Executable:
    """A built library, ready to run on this machine; without the code generator where the target allows it.

    Raises:
        InstallError: what runs it cannot be imported.
    """
    if target.runtime and target.architecture == host_architecture():
        loaded: Executable = _import(target.runtime, f"the runtime of target {target.name!r}")(directory, graph)
        return loaded
    return find_backend(target).load(directory, graph)


def host_target() -> Target:
    """The fastest target (by peak rate) whose instruction sets this processor offers.

    Raises:
        TargetError: there is none; the message names what is missing for each.
    """
    features = processor_features()
    here = ("", host_architecture())
    native = [t for t in map(find_target, target_names()) if t.features and t.architecture in here]
    able = [target for target in native if features.issuperset(target.features)]
    if not able:
        lacks = [f"{t.name} needs {', '.join(sorted(set(t.features) - features))}" for t in native]
        raise TargetError(
            f"no target fits this processor: {'; '.join(lacks) or 'there are none at all'}",
            hint="name the target of the device you compile for; `reference` runs everywhere",
        )
    return max(able, key=lambda target: (target.peak_macs_per_second, len(target.features)))


def can_run(target: Target) -> bool:
    """Whether this machine has the instruction sets of a target."""
    return host_features().issuperset(target.features)


def host_features() -> frozenset[str]:
    """What code may need that this machine offers: its processor's instruction sets, and `cuda` with a GPU."""
    return processor_features() | gpu_features()


def processor_features() -> frozenset[str]:
    """Instruction sets of this processor as its operating system names them.

    QCOMPILE_CPU_FEATURES (names separated by spaces or commas) stands in for the real ones.
    """
    chosen = os.environ.get("QCOMPILE_CPU_FEATURES")
    if chosen is not None:
        return frozenset(chosen.replace(",", " ").split())
    return _read_features()


@cache
def gpu_features() -> frozenset[str]:
    """`cuda` where there is an NVIDIA driver with at least one device."""
    try:
        driver, count = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
    except OSError:
        return frozenset()
    there = not driver.cuInit(0) and not driver.cuDeviceGetCount(ctypes.byref(count)) and count.value
    return frozenset({"cuda"} if there else ())


@cache
def _read_features() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        # Not Linux: what every processor of this architecture has.
        baseline = {"x86_64": {"sse2"}, "amd64": {"sse2"}, "aarch64": {"asimd"}, "arm64": {"asimd"}}
        return frozenset(baseline.get(platform.machine().lower(), ()))
    rows = [line.partition(":") for line in text.splitlines()]
    sets = [frozenset(value.split()) for name, _, value in rows if name.strip() in ("flags", "Features")]
    # Cores may differ (big and little ones); code must run on all of them.
    return frozenset.intersection(*sets) if sets else frozenset()


def _load(name: str, catalogue: Mapping[str, str], what: str, error: type[UsageError]) -> Any:
    if name not in catalogue:
        names = [*catalogue, *([CPU] if what == "target" else [])]
        raise error(f"unknown {what} {name!r}", hint=_suggest(name, names, what))
    return _import(catalogue[name], f"{what} {name!r}")


def _suggest(name: str, names: Sequence[str], what: str) -> str:
    near = get_close_matches(name.lower().replace("_", "-"), names, n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(near)}?"
    plural = "passes" if what == "pass" else "targets"
    return f"{plural} are {', '.join(names)}"


def _import(place: str, what: str) -> Any:
    """The object at "module:name"."""
    module, _, attribute = place.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise InstallError(f"{what} cannot be imported from {module}: {error}") from error
    except AttributeError:
        raise InstallError(f"{what}: module {module} has no {attribute!r}") from None


def _catalogue(package: str) -> dict[str, str]:
    """Name → "module:attribute"; a third party cannot take the name of one of ours."""
    ours: Mapping[str, str] = _package(package).CATALOGUE
    found = dict(ours)
    for point in entry_points(group=f"qcompile.{package}"):
        found.setdefault(point.name, point.value)
    return found


def _package(name: str) -> ModuleType:
    """Our top-level package `passes` or `targets`; the names are common, so another may shadow it."""
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise InstallError(
            f"the package {name!r} of qcompile cannot be imported: {error}", hint="install qcompile again"
        ) from error
    if getattr(module, "__qcompile_api__", None) != API:
        place = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), "an unknown place")
        raise InstallError(
            f"another {name!r} shadows the one of qcompile: {place}",
            hint=f"rename it, or run qcompile from a folder without a {name!r} of its own",
        )
    return module
