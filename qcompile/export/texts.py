"""The C files around the kernels: header, program, example, self-test."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from qcompile.export.ports import CPort
from qcompile.ir import Array
from qcompile.target.deployment import Deployment

_IN_A_LINE = 24


def _signature(prefix: str, inputs: Sequence[CPort], outputs: Sequence[CPort]) -> str:
    ins = [f"const {p.element} *{p.argument}" for p in inputs]
    return f"int {prefix}_run({', '.join([*ins, *(f'{p.element} *{p.argument}' for p in outputs)])})"


def _comment(text: str) -> str:
    """Names come from the model file: what would end a comment does not."""
    return text.replace("*/", "* /").replace("/*", "/ *").replace("\n", " ").replace("\\", "/")


def header(
    prefix: str, inputs: Sequence[CPort], outputs: Sequence[CPort], made: Deployment, about: Sequence[str]
) -> str:
    """`PREFIX.h`: sizes, quantisation and the one function."""
    guard = f"{prefix.upper()}_H"
    # A compiler may call these for any loop that copies or fills, whatever the text says.
    needs = ", ".join(sorted({*made.undefined, "memcpy", "memmove", "memset"}))
    lines = [
        "/*",
        *(f" * {_comment(line)}".rstrip() for line in about),
        f" * Links against nothing but {needs}, and not always these.",
        " */",
    ]
    lines += [f"#ifndef {guard}", f"#define {guard}", "", "#include <stdint.h>", ""]
    lines += [
        "/* Working memory: one static array. Parameters: read-only data. */",
        f"#define {prefix.upper()}_ARENA_BYTES {made.arena_bytes}",
        f"#define {prefix.upper()}_PARAMETER_BYTES {made.parameter_bytes}",
        "",
    ]
    for port in (*inputs, *outputs):
        lines += [
            f"/* {_comment(port.name)}: {port.text} */",
            f"#define {port.macro}_SIZE {port.size}",
            f"#define {port.macro}_SCALE {port.grid.scale!r}",
            f"#define {port.macro}_ZERO {port.grid.zero if port.grid.zero >= 0 else f'({port.grid.zero})'}",
            "",
        ]
    lines += [
        "#ifdef __cplusplus",
        'extern "C" {',
        "#endif",
        "",
        "/*",
        " * Computes the outputs of one sample; arrays are row-major without the batch and do not overlap.",
        " * Returns 0, or -1 where a pointer is null. Not reentrant: all calls share the working memory.",
        " */",
        f"{_signature(prefix, inputs, outputs)};",
        "",
        "#ifdef __cplusplus",
        "}",
        "#endif",
        "",
        f"#endif /* {guard} */",
        "",
    ]
    return "\n".join(lines)


def program(prefix: str, inputs: Sequence[CPort], outputs: Sequence[CPort], made: Deployment) -> str:
    """`PREFIX.c`: parameters, working memory, kernels (or their declaration), and the function."""
    macro = prefix.upper()
    ports = ", ".join(p.argument for p in (*inputs, *outputs))
    null = " || ".join(f"!{p.argument}" for p in (*inputs, *outputs))
    # Words, so that integers of every width may lie in it; bytes may alias anything.
    aligned = f" __attribute__((aligned({made.arena_alignment})))" if made.arena_alignment > 4 else ""
    return "\n".join(
        [
            f'#include "{prefix}.h"',
            "",
            '/* Where the arrays go, for a linker script: such as __attribute__((section(".dtcm"))). */',
            f"#ifndef {macro}_ARENA_PLACE",
            f"#define {macro}_ARENA_PLACE",
            "#endif",
            "",
            "typedef char q_int_has_32_bits[sizeof(int) >= 4 ? 1 : -1];",
            "typedef char q_shift_keeps_the_sign[(-1 >> 1) == -1 ? 1 : -1];",
            "",
            f'#include "{prefix}_parameters.h"',
            "",
            f"static int32_t {prefix}_arena[({macro}_ARENA_BYTES + 3) / 4]{aligned} {macro}_ARENA_PLACE;",
            "",
            made.code,
            _signature(prefix, inputs, outputs),
            "{",
            f"    if ({null}) {{",
            "        return -1;",
            "    }",
            f"    {made.call.format(ports=ports)};",
            "    return 0;",
            "}",
            "",
        ]
    )


def example(prefix: str, inputs: Sequence[CPort], outputs: Sequence[CPort]) -> str:
    """`main.c`: one call, and what comes out."""
    lines = ["#include <stdio.h>", "", f'#include "{prefix}.h"', "", "int main(void)", "{"]
    lines += [f"    static {p.element} {p.argument}[{p.macro}_SIZE];" for p in (*inputs, *outputs)]
    lines += ["    int i;", ""]
    for p in inputs:
        lines += [
            f"    /* integer = round(real / {p.macro}_SCALE) + {p.macro}_ZERO, clipped; the real 0 here. */",
            f"    for (i = 0; i < {p.macro}_SIZE; ++i) {{",
            f"        {p.argument}[i] = {p.macro}_ZERO;",
            "    }",
        ]
    arguments = ", ".join(p.argument for p in (*inputs, *outputs))
    lines += [f"    if ({prefix}_run({arguments}) != 0) {{", "        return 1;", "    }"]
    for p in outputs:
        lines += [
            f"    for (i = 0; i < {p.macro}_SIZE && i < 10; ++i) {{",
            f'        printf("{p.argument}[%d] = %d\\n", i, (int){p.argument}[i]);',
            "    }",
        ]
    return "\n".join([*lines, "    return 0;", "}", ""])


def self_test(
    prefix: str,
    inputs: Sequence[CPort],
    outputs: Sequence[CPort],
    given: Mapping[str, Array],
    expected: Mapping[str, Array],
) -> str:
    """`self_test.c`: golden integers of the reference; ends with status 0 where all are equal.

    Args:
        given, expected: (n, …) by the names of inputs and outputs.
    """
    count = len(given[inputs[0].name])
    lines = [
        "/* Inputs and the outputs the reference computes for them; compile with -DNO_STDIO where nothing prints. */",
        "#ifndef NO_STDIO", "#include <stdio.h>", "#endif", "", f'#include "{prefix}.h"', "",
        f"enum {{ SAMPLES = {count} }};", "",
    ]  # fmt: skip
    for port, arrays in [*((p, given) for p in inputs), *((p, expected) for p in outputs)]:
        kind = "given" if arrays is given else "expected"
        lines += _table(f"{kind}_{port.argument}", port, arrays[port.name])
    lines += [f"static {p.element} {p.argument}[{p.macro}_SIZE];" for p in outputs]
    lines += ["", "int main(void)", "{", "    long compared = 0, differing = 0;", "    int sample, i;", ""]
    arguments = [f"given_{p.argument}[sample]" for p in inputs] + [p.argument for p in outputs]
    lines += [
        "    for (sample = 0; sample < SAMPLES; ++sample) {",
        f"        if ({prefix}_run({', '.join(arguments)}) != 0) {{", "            return 2;", "        }",
    ]  # fmt: skip
    for p in outputs:
        lines += [
            f"        for (i = 0; i < {p.macro}_SIZE; ++i) {{",
            f"            differing += {p.argument}[i] != expected_{p.argument}[sample][i];",
            "            ++compared;",
            "        }",
        ]
    lines += [
        "    }", "#ifndef NO_STDIO",
        f'    printf("{prefix}: %ld of %ld golden integers differ\\n", differing, compared);',
        "#else", "    (void)compared;", "#endif", "    return differing != 0;", "}", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _table(name: str, port: CPort, array: Array) -> Iterator[str]:
    yield f"static const {port.element} {name}[SAMPLES][{port.macro}_SIZE] = {{"
    for sample in array.reshape(len(array), -1):
        yield "{"
        flat = sample.tolist()
        for start in range(0, len(flat), _IN_A_LINE):
            line = ",".join(map(str, flat[start : start + _IN_A_LINE])) + ","
            yield line.replace("-2147483648", "INT32_MIN")
        yield "},"
    yield "};"
