"""The verbs, one per file; `qcompile.cli.app` registers them."""
