"""The layers of the house, read from the imports; names that say where; light import."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import passes
import targets

ROOT = Path(__file__).parents[2]
CORE = {"errors", "units"}
EVERYTHING = {"*"}

ALLOWED: dict[str, set[str]] = {
    # unit → the units of this project it may import
    "qcompile.errors": set(),
    "qcompile.units": {"qcompile.errors"},
    "qcompile.ir": {"qcompile.errors"},
    "qcompile.semantics": {"qcompile.ir", "qcompile.errors"},
    "qcompile.target": {"qcompile.ir", "qcompile.errors"},
    "qcompile.exec": {"qcompile.ir", "qcompile.semantics", "qcompile.errors"},
    "qcompile.capture": {"qcompile.ir", "qcompile.semantics", "qcompile.exec", "qcompile.errors"},
    "qcompile.data": {"qcompile.ir", "qcompile.errors", "qcompile.units"},
    "qcompile.artifact": {
        "qcompile.ir", "qcompile.semantics", "qcompile.exec", "qcompile.target", "qcompile.data", "qcompile.errors"
    },
    "qcompile.pm": {"qcompile.ir", "qcompile.target", "qcompile.errors", "passes", "targets"},
    "passes": {
        "qcompile.ir", "qcompile.semantics", "qcompile.exec", "qcompile.pm", "qcompile.target", "qcompile.errors",
        "qcompile.units",
    },
    "targets": {"qcompile.ir", "qcompile.semantics", "qcompile.target", "qcompile.artifact", "qcompile.errors"},
}  # fmt: skip

ONLY_IN: dict[str, tuple[str, ...]] = {
    # third-party package → the units that may import it
    "tvm": ("targets",),
    "pulp": ("passes/plan",),
    "highspy": ("passes/plan",),
    "torch": ("qcompile/exec", "qcompile/capture"),
    "numba": ("qcompile/exec",),
    "onnx": ("qcompile/capture",),
    "onnxruntime": ("qcompile/exec", "qcompile/capture"),
    "typer": ("qcompile/cli",),
    "rich": ("qcompile/cli", "qcompile/logs.py"),
}


def sources() -> list[Path]:
    return sorted(p for folder in ("qcompile", "passes", "targets") for p in (ROOT / folder).rglob("*.py"))


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def unit_of(module: str) -> str:
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "qcompile" else parts[0]


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_layers(path: Path) -> None:
    unit = unit_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    allowed = ALLOWED.get(unit)
    relative = path.relative_to(ROOT).as_posix()
    for module in imports(path):
        package = module.split(".")[0]
        if package in ONLY_IN:
            assert relative.startswith(ONLY_IN[package]), f"{relative} imports {module}"
        if allowed is None or package not in ("qcompile", "passes", "targets"):
            continue
        other = unit_of(module)
        if other in ("qcompile", unit):
            continue
        assert other in allowed, f"{relative} ({unit}) imports {module}"


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_readable(path: Path) -> None:
    lines = path.read_text().count("\n")
    assert lines <= 420, f"{path.name} has {lines} lines: split it"
    assert path.name == "__init__.py" or ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"


@pytest.mark.parametrize(("name", "where"), sorted(passes.CATALOGUE.items()))
def test_a_pass_has_one_name(name: str, where: str) -> None:
    """fold-batch-norm is FoldBatchNorm in fold_batch_norm.py."""
    module_name, class_name = where.split(":")
    cls = getattr(importlib.import_module(module_name), class_name)
    assert cls.name == name
    assert module_name.rsplit(".", 1)[1] == name.replace("-", "_")
    assert class_name == "".join(part.capitalize() for part in name.split("-"))


def test_every_target_has_one_name() -> None:
    for name, where in targets.CATALOGUE.items():
        module, attribute = where.split(":")
        assert getattr(importlib.import_module(module), attribute).name == name


def test_import_is_light() -> None:
    code = (
        "import sys, qcompile, qcompile.artifact; "
        "heavy = 'torch numba tvm onnx onnxruntime pulp rich typer'.split(); "
        "print(*(m for m in heavy if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == ""


def test_test_modules_have_names_of_their_own() -> None:
    """Without packages pytest imports a test by its file's name: two of one name stop the run in a clean clone."""
    names = Counter(p.name for p in (ROOT / "tests").rglob("test_*.py"))
    assert not [name for name, times in names.items() if times > 1]
