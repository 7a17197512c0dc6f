"""Functions a TVM runtime can call, in front of a library of plain C functions."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from qcompile.errors import TargetError
from targets._tvm.cross import find_linker

_HEAD = """\
#include <stdint.h>
/* The calling convention of TVM's functions: 16-byte values, tensors by pointers to structures that begin with data. */
typedef struct { int32_t kind; uint32_t zero; union { int64_t integer; void *pointer; } u; } value;
#define DATA(i) (*(void **)arguments[i].u.pointer)
"""

_FUNCTION = """\
int {name}({types});
int __tvm_ffi_{name}(void *self, const value *arguments, int32_t count, value *result);
int __tvm_ffi_{name}(void *self, const value *arguments, int32_t count, value *result)
{{
    (void)self;
    if (count != {count}) {{
        return -1;
    }}
    {name}({data});
{after}    result->kind = 0;
    result->zero = 0;
    result->u.integer = 0;
    return 0;
}}
"""

_NEXT_COPY = """\
    {
        int32_t *control = DATA(0);
        control[2] = (int32_t)(((int64_t)control[2] + control[0]) % control[1]);
    }
"""
"""Behind a repeating caller (`targets._tvm.library.Bench`): the next batch goes on where this one stopped."""


@dataclass(frozen=True)
class Upload:
    """What a device loads.

    Attributes:
        files: name → content; names are unique to the content, because a process loads a name once.
        module: the file to load.
    """

    files: dict[str, bytes]
    module: str


def wrap(functions: Mapping[str, int], library: bytes, options: Mapping[str, str], *, bench: bool) -> Upload:
    """A library, and one with a TVM function for each of its plain ones, to lie side by side.

    Args:
        functions: name → number of pointer arguments.
        bench: whether they are repeating callers.

    Raises:
        TargetError: there is no C compiler for the target.
    """
    parts = [_HEAD]
    for name, count in functions.items():
        data = ", ".join(f"DATA({i})" for i in range(count))
        types = ", ".join(["void *"] * count)
        after = _NEXT_COPY if bench else ""
        parts.append(_FUNCTION.format(name=name, types=types, data=data, count=count, after=after))
    command = find_linker(options)
    digest = hashlib.sha256(library).hexdigest()[:16]
    plain, module = f"plain-{digest}.so", f"module-{digest}.so"
    with TemporaryDirectory() as folder:
        (Path(folder) / "wrapper.c").write_text("\n".join(parts))
        (Path(folder) / plain).write_bytes(library)
        flags = ["-O1", "-shared", "-fPIC", "-nostdlib", "-Wl,-rpath,$ORIGIN", "-o", module, "wrapper.c", plain]
        done = subprocess.run([*command, *flags], capture_output=True, text=True, check=False, cwd=folder)
        if done.returncode:
            raise TargetError(f"{command[0]} cannot build for RPC: {done.stderr.strip()[-1000:]}")
        return Upload({plain: library, module: (Path(folder) / module).read_bytes()}, module)
