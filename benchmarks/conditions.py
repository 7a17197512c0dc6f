"""Under what conditions something was measured.  Standard library only: peers' environments import it too."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

_INTERESTING = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimddp", "i8mm")
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


@cache
def _cpuinfo() -> dict[str, str]:
    found: dict[str, str] = {}
    for line in (read(Path("/proc/cpuinfo")) or "").splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        found.setdefault(key, value)
    return found


def read(path: Path) -> str | None:
    """A small text file, or None where it is not readable."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def busy_seconds() -> float | None:
    """CPU time that all processes of this machine have used, time stolen from a virtual machine included."""
    fields = (read(Path("/proc/stat")) or "").partition("\n")[0].split()[1:9]
    if len(fields) < 8:
        return None
    user, nice, system, _idle, _waiting, irq, softirq, steal = map(int, fields)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def process_seconds(pid: int) -> float:
    """CPU time that a process has used; 0 where it cannot be read."""
    fields = (read(Path(f"/proc/{pid}/stat")) or "").rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK") if fields else 0.0


def memory() -> dict[str, int]:
    """Bytes this process holds now and held at most; empty where the system does not tell."""
    found = {}
    for line in (read(Path("/proc/self/status")) or "").splitlines():
        key, _, value = line.partition(":")
        if name := {"VmRSS": "now", "VmHWM": "peak"}.get(key):
            found[name] = int(value.split()[0]) * 1024
    return found


def cpu_flags() -> frozenset[str]:
    """Features of the processor as the operating system names them."""
    info = _cpuinfo()
    return frozenset((info.get("flags") or info.get("Features") or "").split())


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of those of these packages that this environment has."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def conditions() -> dict[str, Any]:
    """The machine, as plain JSON values; no host name."""
    flags = cpu_flags()
    return {
        "cpu": _cpuinfo().get("model name") or platform.machine(),
        "model": [_cpuinfo().get(key) for key in ("cpu family", "model", "stepping")],
        "instruction_sets": [name for name in _INTERESTING if name in flags],
        "cpus": os.cpu_count(),
        "usable_cpus": len(os.sched_getaffinity(0)),
        "virtual_machine": "hypervisor" in flags,
        "governor": read(_GOVERNOR),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
    }
