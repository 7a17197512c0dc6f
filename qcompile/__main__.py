"""`python -m qcompile`, and the console script."""

from __future__ import annotations


def main() -> None:
    """Run the command line on this process's arguments; always ends with SystemExit."""
    from qcompile.cli.app import main as run

    run()


if __name__ == "__main__":
    main()
