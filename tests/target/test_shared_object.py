"""Shared objects are opened as they lie in their files, not as the dynamic linker remembers them."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import pytest

from targets._tvm.cross import find_linker
from targets._tvm.shared_object import open_shared_object


def write(path: Path, answer: int) -> None:
    """A library, in a new file, whose function gives a number."""
    source = path.with_suffix(".c")
    source.write_text(f"int answer(void) {{ return {answer}; }}\n")
    made = path.with_suffix(".new")
    subprocess.run([*find_linker({}), "-shared", "-fPIC", str(source), "-o", str(made)], check=True)
    made.replace(path)


def test_a_replaced_library_is_opened_anew(tmp_path: Path) -> None:
    opened = []
    for number in (1, 2, 3):
        write(tmp_path / "library.so", number)
        opened += [open_shared_object(tmp_path / "library.so"), open_shared_object(tmp_path / "library.so")]
    assert [library.answer() for library in opened] == [1, 1, 2, 2, 3, 3]


def test_the_first_library_of_a_name_needs_no_other_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "library.so", 4)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    assert open_shared_object(tmp_path / "library.so").answer() == 4
