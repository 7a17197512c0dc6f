"""Search for floating-point arithmetic: in TIR before code generation, and in the assembly of the finished
kernels.

Moves, shuffles and bitwise logic of vector registers carry `ps` or `pd` in their names on x86 but compute
nothing in floating point; they are not counted.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qcompile.errors import TargetError

_X86 = re.compile(
    r"v?(add|sub|mul|div|min|max|sqrt|rcp|rcp14|rsqrt|rsqrt14|round|rndscale|scalef|getexp|getmant|fixupimm|"
    r"range|reduce|hadd|hsub|addsub|dp|cmp\w*|comi|ucomi)(ps|pd|ss|sd|ph|sh|bf16)"
    r"|vf(n?m)(add|sub)\w*"
    r"|vdpbf16ps|vf?c?madd\w*ph"
    r"|tdp(bf16|fp16)ps|tcmm\w+ps"
    r"|v?cvt\w+"
    r"|f(add|sub|mul|div|sqrt|ld|st|ild|ist|com|ucom|abs|chs|prem|rndint|scale)\w*"
)
_AARCH64 = re.compile(r"f(?!mov$)[a-z]\w*|[su]cvtf|bfdot|bfmmla|bfmlal\w*")
_ARM = re.compile(r"v(?!mov|ldr|str|ldm|stm|push|pop)\w+\.(\w+\.)*(f|bf)\d\S*|v?f(add|sub|mul|div|cmp|mac)\w*")
_PATTERNS: Mapping[str, re.Pattern[str]] = {"x86_64": _X86, "aarch64": _AARCH64, "arm": _ARM}

_DISASSEMBLERS = {"aarch64": ("aarch64-linux-gnu-objdump",), "arm": ("arm-linux-gnueabihf-objdump",)}

_FLOAT_DTYPE = re.compile(r"\bb?float\d\w*")
_LINE = re.compile(r"^\s+([a-z][a-z0-9_.]*)\b")


def tir_float_operations(func: Any) -> list[str]:
    """Floating-point dtypes that occur anywhere in a PrimFunc."""
    return sorted(set(_FLOAT_DTYPE.findall(func.script())))


def assembly_float_operations(function: str, assembly: str, architecture: str) -> list[str]:
    """Floating-point instructions in an assembly listing, as "function: mnemonic", sorted, each once."""
    found = {match[1] for line in assembly.splitlines() if (match := _LINE.match(line))}
    return [f"{function}: {m}" for m in sorted(found) if _PATTERNS[architecture].fullmatch(m)]


def library_float_operations(library: Path, architecture: str) -> list[str]:
    """Floating-point instructions in a linked library, found with the system's disassembler."""
    names = (*_DISASSEMBLERS.get(architecture, ()), "objdump", "llvm-objdump")
    disassembler = next((found for name in names if (found := shutil.which(name))), None)
    if disassembler is None:
        raise TargetError("no objdump on this machine to disassemble a library with", hint="install binutils or llvm")
    command = [disassembler, "-d", "--no-show-raw-insn", str(library)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = re.sub(r"^\s*[0-9a-f]+:", "\t", text, flags=re.MULTILINE)
    return assembly_float_operations(library.name, lines, architecture)
