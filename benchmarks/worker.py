"""One engine with one model in a process of its own: `python -m benchmarks.worker ENGINE MODEL`.

It loads, warms up, and prints one line of JSON: {"ready": true, "seconds": of a call, "amx", "packages", "facts",
"memory": bytes {"before" the engine was loaded, "now", "peak"}}.
Then, for each line of standard input that holds a number K, it times K calls and prints {"median": seconds}.
It ends where its input ends.  What the engine itself prints goes to standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from benchmarks import amx
from benchmarks.conditions import memory
from benchmarks.engines import ENGINES

WARM_UP = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.worker", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("engine", choices=sorted(ENGINES))
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", default="f32", help="of what is not quantised (OpenVINO)")
    parser.add_argument("--no-amx", action="store_true", help="keep the engine from using Intel AMX")
    options = parser.parse_args(arguments)
    # A library that prints would break the protocol: its standard output becomes ours to standard error.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    if options.no_amx:
        amx.refuse()
    before = memory().get("now")
    try:
        loaded = ENGINES[options.engine](options.model, options.threads, options.precision)
        seconds = loaded.timer(WARM_UP)
    except Exception as error:  # whatever an engine raises; the last line says it in short
        traceback.print_exc()
        print(f"{type(error).__name__}: {(str(error).splitlines() or ['?'])[0]}", file=sys.stderr)
        return 1
    ready = {
        "ready": True, "seconds": seconds, "amx": amx.granted(), "packages": loaded.packages, "facts": loaded.facts,
        "memory": {"before": before, **memory()},
    }  # fmt: skip
    print(json.dumps(ready), file=answers)
    for line in sys.stdin:
        print(json.dumps({"median": loaded.timer(int(line))}), file=answers)
    answers.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
