"""On a machine with an NVIDIA GPU: networks beside torch.compile, products of matrices beside torch's int8 product.

`python -m benchmarks.cuda [--networks a,b] [--batch 1,32] [--plans] [--json FILE] [--costs FILE]`

Every contender's work of one batch is one CUDA graph: ours captured by the artifact, torch's (bf16, channels-last,
compiled with max-autotune) captured around the compiled module, so that no time of Python's is counted for either.
They take turns on one stream each; a turn is several launches, each between two events of the device.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.conditions import conditions, versions
from benchmarks.report import table

Timer = Callable[[int], float]
"""Times so many launches; the median in seconds."""

OURS, PLANNED, PEER = "qcompile w8a8", "qcompile plan", "torch bf16"
SIZE = 4096
"""Of the matrices."""
BUDGET = 0.8
"""Of a planned artifact, relative to uniform 8 bits."""
CALIBRATION = 8


@dataclass(frozen=True)
class Row:
    """One contender on one network.

    Attributes:
        seconds: median over the rounds.
        relative: median of the ratios to the peer's time of the same round; None without one.
        spread: width of the middle half of the rounds, relative.
        predicted: seconds that the cost table gives, batch 1, ours only.
    """

    network: str
    batch: int
    contender: str
    seconds: float
    relative: float | None
    spread: float
    predicted: float | None = None


def interleaved(timers: Mapping[str, Timer], rounds: int, launches: int) -> dict[str, np.ndarray]:
    """Seconds of every contender in every round; the order is turned around from round to round."""
    found: dict[str, list[float]] = {name: [] for name in timers}
    for turn in range(rounds):
        order = list(timers) if turn % 2 == 0 else list(timers)[::-1]
        for name in order:
            found[name].append(timers[name](launches))
    return {name: np.array(values) for name, values in found.items()}


def rows_of(
    network: str, batch: int, times: Mapping[str, np.ndarray], peer: str, predicted: Mapping[str, float | None]
) -> list[Row]:
    """Medians, ratios within rounds, and spreads."""
    made = []
    for name, values in times.items():
        low, middle, high = (float(np.quantile(values, q)) for q in (0.25, 0.5, 0.75))
        relative = float(np.median(values / times[peer])) if peer in times else None
        made.append(Row(network, batch, name, middle, relative, (high - low) / middle, predicted.get(name)))
    return made


def our_timer(executable: Any, batch: int) -> Timer:
    """Of an artifact's graph for a batch."""
    return lambda launches: float(executable.measure(1, launches, batch).median)


def torch_timer(module: Any, batch: int) -> Timer:
    """Of a module in bf16 and channels-last, compiled and captured."""
    import torch

    x = torch.randn(batch, 3, 224, 224, device="cuda", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    module = module.to(device="cuda", dtype=torch.bfloat16, memory_format=torch.channels_last).eval()
    # The module is captured here instead of by torch, whose own graphs come with time of Python's.
    compiled = torch.compile(module, mode="max-autotune-no-cudagraphs")
    return captured(lambda: compiled(x))


def captured(work: Callable[[], Any]) -> Timer:
    """Of some work of torch as a CUDA graph."""
    import torch

    stream = torch.cuda.Stream()
    with torch.no_grad(), torch.cuda.stream(stream):
        for _ in range(5):
            work()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            work()

    def timed(launches: int) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        spent = []
        with torch.cuda.stream(stream):
            for _ in range(launches):
                start.record()
                graph.replay()
                end.record()
                end.synchronize()
                spent.append(start.elapsed_time(end) * 1e-3)
        return float(np.median(spent))

    return timed


def artifacts_of(network: str, target: str, folder: Path, plans: bool) -> dict[str, Any]:
    """Contender → what `qcompile.api.compile` returned."""
    from benchmarks import networks
    from qcompile import api

    source = folder / f"{network}.onnx"
    networks.export(network, source)
    noise = np.random.default_rng(0).standard_normal((CALIBRATION, *networks.IMAGE)).astype(np.float32)
    given: dict[str, Any] = {"target": target, "calib": {"input": noise}, "overwrite": True}
    found = {OURS: api.compile(source, uniform="w8a8", out=folder / f"{network}.w8a8.qc", **given)}
    if plans:
        budget = BUDGET * found[OURS].artifact.measurements()["median_ms"] * 1e-3
        found[PLANNED] = api.compile(source, latency=budget, out=folder / f"{network}.plan.qc", **given)
    return found


def time_network(network: str, options: argparse.Namespace, folder: Path) -> list[Row]:
    """All contenders at all batch sizes."""
    from benchmarks import networks

    made = artifacts_of(network, options.target, folder, options.plans)
    found = []
    for batch in options.batch:
        timers = {name: our_timer(result.artifact.executable, batch) for name, result in made.items()}
        if options.peers:
            timers[PEER] = torch_timer(networks.build(network), batch)
        times = interleaved(timers, options.rounds, options.launches)
        predicted = {
            name: result.predicted_ms * 1e-3
            for name, result in made.items()
            if batch == 1 and result.predicted_ms is not None
        }
        found += rows_of(network, batch, times, PEER, predicted)
        print(f"{network}, batch {batch}: timed", file=sys.stderr, flush=True)
    return found


def product_program(size: int, target: Any) -> Any:
    """(program, kernel): a product of size × size matrices of 8 bits, requantized to 8 bits."""
    from passes.lower.plan_memory import plan_program
    from qcompile.ir import BATCH, INT, GraphBuilder, Grid, TensorType

    rng, b = np.random.default_rng(0), GraphBuilder("product", INT)
    type_ = TensorType((BATCH, size, size), "u8")
    b.input("x", type_, Grid(1.0, 0, "u8"))
    # Copies before and behind, so that the product reads and writes memory of its own.
    x = b.add("reshape", ["x"], name="in", attrs={"shape": type_.shape})
    weights = rng.integers(-127, 128, (size, size)).astype(np.int8)
    sums = b.add("linear", [x], name="product", consts={"w": weights, "b": np.zeros(size, np.int32)}, attrs={})
    consts = {"m0": np.full((1, size), 1 << 30, np.int32), "e": np.full((1, size), 44, np.int32)}
    y = b.add("requant", [sums], name="y", consts=consts, attrs={
        "zeros": (0,), "zp": 128, "lo": 0, "hi": 255, "dtype": "u8",
    })  # fmt: skip
    shown = b.add("reshape", [y], name="out", attrs={"shape": type_.shape})
    b.output("out", shown, Grid(1.0, 0, "u8"))
    program = plan_program(b.build(), target)
    return program, next(k for k in program.kernels if k.anchor.op == "linear")


def time_products(options: argparse.Namespace) -> dict[str, Any]:
    """Operations a second of our product, by implementation, and of torch's."""
    from qcompile.pm.registry import find_backend, find_target

    target = find_target(options.target)
    backend: Any = find_backend(target)
    program, kernel = product_program(options.size, target)
    variants = backend.variants(kernel, program)
    measured = backend.measure([(replace(kernel, variant=v), program) for v in variants], 1)
    operations = 2 * options.size**3
    found: dict[str, Any] = {"size": options.size, "tops": {}}
    for variant, m in zip(variants, measured, strict=True):
        found["tops"][variant] = operations / m.median * 1e-12
    if options.peers:
        import torch

        a, b = (torch.randint(-128, 128, (options.size,) * 2, device="cuda", dtype=torch.int8) for _ in range(2))
        seconds = captured(lambda: torch._int_mm(a, b.t()))(options.launches)
        found["torch_tops"] = operations / seconds * 1e-12
        found["relative"] = max(found["tops"].values()) / found["torch_tops"]
    return found


def format_rows(rows: Sequence[Row]) -> str:
    """A Markdown table."""

    def cells(row: Row) -> tuple[str, ...]:
        error = "-" if row.predicted is None else f"{100 * (row.predicted / row.seconds - 1):+.1f} %"
        relative = "-" if row.relative is None else f"{row.relative:.3f}"
        predicted = "-" if row.predicted is None else f"{row.predicted * 1e3:.4f}"
        spread = f"{100 * row.spread:.1f} %"
        return (
            row.network,
            str(row.batch),
            row.contender,
            f"{row.seconds * 1e3:.4f}",
            relative,
            spread,
            predicted,
            error,
        )

    head = ("network", "batch", "contender", "ms", "/ torch", "spread", "predicted ms", "error")
    return table([head, *map(cells, rows)])


def write_costs(path: Path, target: str) -> int:
    """Everything that was measured on this GPU, as a file for `--costs` and targets/costs; says how many kernels."""
    from qcompile.pm.registry import find_backend, find_target
    from qcompile.target.cost import CostCache
    from qcompile.target.table import export_costs

    backend: Any = find_backend(find_target(target))
    costs = export_costs(CostCache(device=backend.device_name()), target, backend.fingerprint())
    costs.write(path)
    return len(costs.rows)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--networks", type=lambda t: t.split(","), default=["resnet50", "resnet18", "mobilenetv2"])
    parser.add_argument("--batch", type=lambda t: [int(n) for n in t.split(",")], default=[1, 32])
    parser.add_argument("--target", default="", help="cuda:sm_90 and the like. [default: this GPU's]")
    parser.add_argument("--plans", action="store_true", help="also a plan at 80 %% of the latency of uniform 8 bits")
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="ours only; needs no torch for GPUs")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--launches", type=int, default=100, help="of a turn")
    parser.add_argument("--size", type=int, default=SIZE, help="of the matrices")
    parser.add_argument("--work", type=Path, help="folder for the artifacts. [default: a temporary one]")
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument("--costs", type=Path, help="file for the measured cost table of this GPU")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Time, print, and write what was asked for.  Ends with 6 where there is no GPU."""
    from qcompile.errors import DeviceError
    from targets.cuda import driver

    options = parse(arguments)
    try:
        device = driver.device()
    except DeviceError as error:
        print(f"error: {error.message}\n  hint: {error.hint}", file=sys.stderr)
        return DeviceError.exit_code
    options.target = options.target or f"cuda:{device.architecture}"
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.work or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for network in options.networks:
            rows += time_network(network, options, folder)
    products = time_products(options)
    print(format_rows(rows))
    best = max(products["tops"], key=products["tops"].__getitem__)
    peer = f", torch {products['torch_tops']:.1f} ({products['relative']:.2f} of it)" if options.peers else ""
    print(f"\n{options.size}³ in 8 bits: {products['tops'][best]:.1f} TOPS ({best}){peer}")
    if options.json is not None:
        facts = {"device": device.name, "target": options.target, "versions": versions(("qcompile", "torch"))}
        figures = {**facts, "conditions": conditions(), "rows": [asdict(r) for r in rows], "products": products}
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    if options.costs is not None:
        print(f"{write_costs(options.costs, options.target)} kernels in {options.costs}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
