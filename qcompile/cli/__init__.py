"""The command line: one file per verb, each a thin layer over `qcompile.api`.  See docs/cli.md."""
