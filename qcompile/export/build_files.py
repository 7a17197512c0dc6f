"""CMakeLists.txt and Makefile of an exported program."""

from __future__ import annotations

from collections.abc import Sequence


def cmake(prefix: str, objects: Sequence[str]) -> str:
    """A static library, the example, and the self-test under ctest."""
    listed = "".join(f" ${{CMAKE_CURRENT_SOURCE_DIR}}/{name}" for name in objects)
    return "\n".join(
        [
            "cmake_minimum_required(VERSION 3.10)",
            f"project({prefix} C)",
            "",
            "set(CMAKE_C_STANDARD 99)",
            "if(NOT CMAKE_BUILD_TYPE)",
            "  set(CMAKE_BUILD_TYPE Release)",
            "endif()",
            "",
            f"add_library({prefix} STATIC {prefix}.c{listed})",
            *([f"set_source_files_properties({listed.strip()} PROPERTIES EXTERNAL_OBJECT TRUE)"] * bool(objects)),
            f"target_include_directories({prefix} PUBLIC ${{CMAKE_CURRENT_SOURCE_DIR}})",
            f"target_compile_options({prefix} PRIVATE -Wall -Wextra -Werror)",
            "",
            f"add_executable({prefix}_example main.c)",
            f"target_link_libraries({prefix}_example PRIVATE {prefix})",
            f"add_executable({prefix}_self_test self_test.c)",
            f"target_link_libraries({prefix}_self_test PRIVATE {prefix})",
            "enable_testing()",
            f"add_test(NAME {prefix}_self_test COMMAND {prefix}_self_test)",
            "",
        ]
    )  # fmt: skip


def emulator(compiler: str) -> str:
    """Of what a cross compiler makes, where `uname` says that this is another machine; empty for the host's own."""
    triple = compiler.removesuffix("-gcc")
    if triple in (compiler, ""):
        return ""
    machine = triple.partition("-")[0]
    return f" $(if $(filter {machine}%,$(shell uname -m)),,qemu-{machine} -L /usr/{triple})"


def makefile(prefix: str, objects: Sequence[str], compiler: str, target: str) -> str:
    """`make`, `make test`; RUN names an emulator where the target is another machine."""
    library = f"lib{prefix}.a"
    return "\n".join(
        [
            f"# For {target}. Another compiler: make CC=…; RUN runs the self-test, by an emulator on other machines.",
            f"CC := {compiler}" if compiler != "cc" else "CC ?= cc",
            "AR ?= ar",
            "CFLAGS ?= -O2",
            "WARNINGS := -std=c99 -Wall -Wextra -Werror",
            f"RUN ?={emulator(compiler)}",
            "",
            f"all: {library} example self_test",
            "",
            f"{prefix}.o: {prefix}.c {prefix}.h {prefix}_parameters.h",
            f"\t$(CC) $(WARNINGS) $(CFLAGS) -c -o $@ {prefix}.c",
            "",
            f"{library}: {prefix}.o{''.join(f' {name}' for name in objects)}",
            "\t$(AR) rcs $@ $^",
            "",
            f"example: main.c {library}",
            "\t$(CC) $(WARNINGS) $(CFLAGS) -o $@ $^",
            "",
            f"self_test: self_test.c {library}",
            "\t$(CC) $(WARNINGS) $(CFLAGS) -o $@ $^",
            "",
            "test: self_test",
            "\t$(RUN) ./self_test",
            "",
            "clean:",
            f"\trm -f {prefix}.o {library} example self_test",
            "",
            ".PHONY: all test clean",
            "",
        ]
    )
