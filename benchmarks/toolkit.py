"""Sony's model-compression-toolkit on a network: `python -m benchmarks.toolkit NETWORK.npz CALIB.npz DATA.npz OUT.npz`.

Runs in the peers' environment, which needs torch and model-compression-toolkit, and not qcompile.  NETWORK.npz is what
`benchmarks.quantizers` writes of a canonical float network, so that layers have the same names on both sides.  With
`--bytes` the toolkit chooses the bits of the weights itself; with `--plan` it takes a plan's.  OUT.npz gets `scores`,
(n, classes) for the samples of DATA.npz, and `report`, JSON with the bits of each layer, the bytes and the seconds.
"""

from __future__ import annotations

import argparse
import importlib
import json
import operator
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

BATCH = 32
WIDTHS = (8, 7, 6, 5, 4, 3, 2)
"""Weight bits offered with `--widths all`, as qcompile's targets offer them; the toolkit's own target has 8, 4, 2."""
OWN_WIDTHS = (8, 4, 2)


class Network(nn.Module):
    """A described network as modules and functions the toolkit knows; layers are `n<number>`.

    Args:
        nodes: dicts with name, op, inputs, attrs and consts (role → key of `arrays`).
        arrays: float32, by key.
        port: name of the input.
        output: name of the value that holds the scores.
    """

    def __init__(self, nodes: Sequence[Mapping[str, Any]], arrays: Mapping[str, Any], port: str, output: str) -> None:
        super().__init__()
        self.port, self.output = port, output
        self.steps: list[tuple[str, list[str], Callable[..., Any]]] = []
        for number, node in enumerate(nodes):
            consts = {role: torch.from_numpy(arrays[key]) for role, key in node["consts"].items()}
            step = module_of(node, consts)
            if isinstance(step, nn.Module):
                self.add_module(f"n{number}", step)
            self.steps.append((node["name"], list(node["inputs"]), step))

    def forward(self, x: Tensor) -> Tensor:
        """Scores (n, classes)."""
        values = {self.port: x}
        for name, inputs, step in self.steps:
            values[name] = step(*(values[value] for value in inputs))
        return values[self.output]


def module_of(node: Mapping[str, Any], consts: Mapping[str, Tensor]) -> Callable[..., Any]:
    """A module or a function that computes one node.  Raises NotImplementedError for what the toolkit is not given."""
    op, attrs = node["op"], node["attrs"]
    found: Callable[..., Any] | None = None
    if op == "conv2d":
        found = conv(attrs, consts)
    elif op == "linear":
        rows, columns = consts["w"].shape
        found = nn.Linear(columns, rows, bias="b" in consts)
        fill(found, consts)
    elif op == "clip" and attrs["lo"] == 0:
        found = {6.0: nn.ReLU6(), float("inf"): nn.ReLU()}.get(attrs["hi"])
    elif op == "prelu":
        least, most = consts["slope"].aminmax()
        found = nn.LeakyReLU(float(least)) if least == most else None
    elif op == "max_pool" and not any(attrs["pad"]):
        found = nn.MaxPool2d(tuple(attrs["kernel"]), tuple(attrs["stride"]))
    elif op == "add":
        found = operator.add
    elif op == "concat":
        found = lambda *parts: torch.cat(parts, dim=attrs["axis"])  # noqa: E731
    elif op == "reduce_mean":
        found = lambda x: torch.mean(x, dim=list(attrs["axes"]), keepdim=bool(attrs["keepdims"]))  # noqa: E731
    elif op == "reshape":
        found = lambda x: torch.reshape(x, tuple(attrs["shape"]))  # noqa: E731
    elif op == "slice":
        cuts = tuple(slice(*cut) for cut in zip(attrs["starts"], attrs["ends"], attrs["steps"], strict=True))
        found = lambda x: x[(slice(None), *cuts)]  # noqa: E731
    elif op == "pad":
        rank = len(attrs["pads"]) // 2
        sides = [attrs["pads"][axis + side * rank] for axis in reversed(range(rank)) for side in (0, 1)]
        found = lambda x: F.pad(x, sides, value=attrs["value"])  # noqa: E731
    if found is None:
        raise NotImplementedError(f"no module for {op} {attrs}")
    return found


def conv(attrs: Mapping[str, Any], consts: Mapping[str, Tensor]) -> nn.Module:
    """A convolution, behind a padding of its own where its sides differ."""
    top, left, bottom, right = attrs["pad"]
    w, groups = consts["w"], attrs["groups"]
    even = (top, left) == (bottom, right)
    made: Any = nn.Conv2d
    found: nn.Module = made(
        w.shape[1] * groups, w.shape[0], tuple(w.shape[2:]), tuple(attrs["stride"]), (top, left) if even else 0,
        tuple(attrs["dilation"]), groups, bias="b" in consts,
    )  # fmt: skip
    fill(found, consts)
    return found if even else nn.Sequential(nn.ZeroPad2d((left, right, top, bottom)), found)


def fill(module: Any, consts: Mapping[str, Tensor]) -> None:
    """Set weight and bias."""
    with torch.no_grad():
        module.weight.copy_(consts["w"])
        if "b" in consts:
            module.bias.copy_(consts["b"])


def load_toolkit() -> Any:
    """The package.

    It imports torchvision, whose wheels from the Python index are built for GPUs: beside a CPU build of torch its
    native operators are missing, and the import fails on two names.  They are declared, and never called here.
    """
    try:
        return importlib.import_module("model_compression_toolkit")
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] in _PARTS]:
            del sys.modules[name]
    library: Any = importlib.import_module("torch.library").Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    _KEPT.append(library)
    return importlib.import_module("model_compression_toolkit")


_PARTS = ("model_compression_toolkit", "torchvision", "edgemdt_cl", "mct_quantizers")
_KEPT: list[Any] = []


def platform(widths: Sequence[int]) -> Any:
    """The toolkit's default target with these weight bits to choose from."""
    base = "model_compression_toolkit.target_platform_capabilities"
    tpc: Any = importlib.import_module(f"{base}.tpc_models.imx500_tpc.v1_0.tpc")
    eight, _, other = tpc.get_op_quantization_configs()
    offered = [eight.clone_and_edit(attr_to_edit={tpc.KERNEL_ATTR: {tpc.WEIGHTS_N_BITS: bits}}) for bits in widths]
    return tpc.generate_tpc(other, offered[0], offered, "offered")


def batches(arrays: Mapping[str, Any], port: str) -> Iterator[list[Any]]:
    """The samples, as the toolkit wants them."""
    for start in range(0, len(arrays[port]), BATCH):
        yield [arrays[port][start : start + BATCH]]


def quantize(
    network: Network, calib: Mapping[str, Any], limit: int | None, plan: Mapping[str, int], widths: str
) -> Any:
    """The quantised module.

    Args:
        limit: bytes of weights, or None with a plan.
        plan: module name → weight bits.
        widths: "own" or "all".
    """
    toolkit = load_toolkit()
    core = toolkit.core
    bit_width = core.BitWidthConfig()
    for name, bits in plan.items():
        bit_width.set_manual_weights_bit_width(core.common.network_editors.NodeNameFilter(name), bits, "weight")
    # Layers stay as they are, so that bytes are of the same weights.
    config = core.CoreConfig(
        quantization_config=core.QuantizationConfig(linear_collapsing=False, residual_collapsing=False),
        mixed_precision_config=core.MixedPrecisionQuantizationConfig(), bit_width_config=bit_width,
    )  # fmt: skip
    memory = float("inf") if limit is None else float(limit)
    found, _ = toolkit.ptq.pytorch_post_training_quantization(
        network, lambda: batches(calib, network.port), target_resource_utilization=core.ResourceUtilization(memory),
        core_config=config, target_platform_capabilities=platform(OWN_WIDTHS if widths == "own" else WIDTHS),
    )  # fmt: skip
    return found


def bits_of(module: Any) -> dict[str, int]:
    """Name of each quantised layer → bits of its weights."""
    return {
        name: int(part.weights_quantizers["weight"].num_bits)
        for name, part in module.named_modules()
        if "weight" in getattr(part, "weights_quantizers", {})
    }


def scores(module: Any, data: Mapping[str, Any], port: str) -> Any:
    """What the module finds for each class of each sample, (n, classes)."""
    with torch.no_grad():
        found = [module(torch.from_numpy(part)).flatten(1).numpy() for (part,) in batches(data, port)]
    return np.concatenate(found)


def main(arguments: Sequence[str] | None = None) -> int:
    """Quantise and answer."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.toolkit", description=(__doc__ or "").split("\n")[0])
    for name in ("network", "calib", "data", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--bytes", type=int, help="of the weights")
    parser.add_argument("--plan", type=Path, help='JSON: {"bits": {layer: [weight bits, activation bits]}}')
    parser.add_argument("--widths", choices=("own", "all"), default="all")
    parser.add_argument("--float", action="store_true", help="answer with the float network instead")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    begun = time.perf_counter()
    described = dict(np.load(options.network))
    about = json.loads(str(described["about"]))
    network = Network(about["nodes"], described, about["port"], about["output"]).eval()
    data = dict(np.load(options.data))
    report: dict[str, Any] = {"torch": torch.__version__}
    module: Any = network
    if not options.float:
        places = {name: key for key, name in layer_modules(network).items()}
        wanted = json.loads(options.plan.read_text())["bits"] if options.plan else {}
        plan = {places[layer]: int(pair[0]) for layer, pair in wanted.items()}
        module = quantize(network, dict(np.load(options.calib)), options.bytes, plan, options.widths)
        report["toolkit"] = load_toolkit().__version__
        report["bits"] = {layer_modules(network)[name]: bits for name, bits in bits_of(module).items()}
    found = scores(module, data, about["port"])
    report["seconds"] = time.perf_counter() - begun
    np.savez(options.out, scores=found, report=json.dumps(report))
    return 0


def layer_modules(network: Network) -> dict[str, str]:
    """Name of each layer's module, as tracing spells it → name of the layer."""
    found = {}
    for number, (name, _, step) in enumerate(network.steps):
        if isinstance(step, nn.Sequential):
            found[f"n{number}_1"] = name
        elif isinstance(step, nn.Conv2d | nn.Linear):
            found[f"n{number}"] = name
    return found


if __name__ == "__main__":
    sys.exit(main())
