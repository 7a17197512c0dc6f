"""The program: its verbs, and the default one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from typing import Annotated

import typer

from qcompile.cli.verbs import bench, compile, doctor, eval, explain, export, inspect, ops, run, sweep, targets, verify

app = typer.Typer(
    name="qcompile",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

_EXAMPLES = {
    compile: "qcompile resnet18.onnx --latency 5ms --memory 4MiB --calib calib.npz -o resnet18.qc",
    sweep: "qcompile sweep resnet18.onnx --memory 2MiB:8MiB:1MiB --calib calib.npz -o front",
    inspect: "qcompile inspect resnet18.onnx --shape input:1x3x224x224",
    run: "qcompile run resnet18.qc --data eval.npz -o outputs.npz",
    eval: "qcompile eval resnet18.qc --data eval.npz --model resnet18.onnx",
    bench: "qcompile bench resnet18.qc --threads 4",
    verify: "qcompile verify resnet18.qc --data eval.npz",
    explain: "qcompile explain resnet18.qc layer1.0.conv1",
    doctor: "qcompile doctor",
    export: "qcompile export resnet20.qc --format c --out firmware/resnet20 --target c",
    targets: "qcompile targets --json",
    ops: "qcompile ops",
}

for _module, _example in _EXAMPLES.items():
    app.command(_module.__name__.rpartition(".")[2], epilog=f"Example: `{_example}`")(_module.command)

VERBS = tuple(module.__name__.rpartition(".")[2] for module in _EXAMPLES)
_OWN_FLAGS = frozenset({"-h", "--help", "--version", "--install-completion", "--show-completion"})


def version() -> str:
    """The version that is installed; a checkout that is not has none."""
    try:
        return installed_version("qcompile")
    except PackageNotFoundError:
        return "not installed"


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"qcompile {version()}")
        raise typer.Exit


@app.callback()
def program(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Compile neural networks to integer-only code, with bits per layer chosen for a device.

    `qcompile MODEL …` is short for `qcompile compile MODEL …`: see `qcompile compile --help`.

    Exit codes: 0 done, 1 internal error, 2 usage, 3 model not supported or invalid, 4 budgets infeasible,
    5 accuracy too low, 6 device, 7 verification failed, 8 out of space or memory, 130 interrupted.
    """


def with_verb(arguments: Sequence[str]) -> list[str]:
    """The arguments with `compile` in front where they name no verb."""
    if arguments and arguments[0] not in VERBS and arguments[0] not in _OWN_FLAGS:
        return ["compile", *arguments]
    return list(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; always ends with SystemExit, whose code is listed in docs/cli.md."""
    app(args=with_verb(sys.argv[1:] if arguments is None else arguments), prog_name="qcompile")
