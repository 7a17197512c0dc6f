"""README and docs say what is: their Python runs, their flags and passes exist, their links lead somewhere."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import passes
import targets
from qcompile import pipelines
from qcompile.pm.registry import find_pass

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), ROOT / "models" / "README.md"])
PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in link:
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_python_blocks_run(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    images = np.load(ROOT / "models" / "digits_resnet" / "calib.npz")["input"][:4]
    module = ModuleType("page")
    module.__dict__["images"] = images
    monkeypatch.setitem(sys.modules, "page", module)  # dataclasses look their module up
    for number, block in enumerate(PYTHON.findall(page.read_text())):
        if "\n    ..." not in block:
            exec(compile(block, f"{page.name} block {number}", "exec"), module.__dict__)


def test_no_placeholder_is_left() -> None:
    for page in PAGES:
        assert not re.search(r"\b(TODO|FIXME|XXX)\b|^(SESSION|ACCURACY)$", page.read_text(), re.MULTILINE), page


def test_every_pass_is_described() -> None:
    text = (ROOT / "docs" / "passes.md").read_text()
    for name in passes.CATALOGUE:
        assert f"`{name}`" in text, name


def test_every_target_is_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text()
    for name in targets.CATALOGUE:
        assert f"`{name}`" in text, name


def test_the_pipelines_name_passes() -> None:
    phases = (
        pipelines.CANONICALIZE, pipelines.CALIBRATE, pipelines.ANALYSIS, pipelines.ROUND, pipelines.QUANTIZE,
        pipelines.LOWER,
    )  # fmt: skip
    for name in (name for phase in phases for name in phase):
        assert find_pass(name).name == name


def test_every_flag_of_the_command_line_is_documented() -> None:
    from typer.main import get_command

    from qcompile.cli.app import app

    text = (ROOT / "docs" / "cli.md").read_text()
    for verb, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        assert f"qcompile {verb}" in text or f"`{verb}`" in text, verb
        for parameter in command.params:
            flags = [flag for flag in getattr(parameter, "opts", []) if flag.startswith("-") and flag != "--help"]
            assert not flags or any(flag in text for flag in flags), f"{verb} {flags}"
