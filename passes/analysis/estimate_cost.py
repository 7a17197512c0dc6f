"""estimate-cost: what each precision of each layer costs on this device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import ClassVar

from passes.lower.choose_kernels import fastest
from passes.lower.copy_at_boundary import CopyAtBoundary
from passes.lower.plan_memory import plan_program
from passes.quantize.integerize import STORED_BITS, Integerizer
from passes.quantize.layer_weights import ScaleMemo
from passes.structure import Structure
from qcompile.errors import InternalError
from qcompile.ir import Array, Graph
from qcompile.pm.base import ON_FLOAT, Levels, Pass, PassContext, PassResult, Report
from qcompile.pm.facts import COSTS, RANGES, BitChoice, Bits, CostTable
from qcompile.pm.work import digest, recalled
from qcompile.semantics.grids import packed_bytes, weight_scales
from qcompile.target.backend import Estimating
from qcompile.target.bench import available_cores, measure_missing
from qcompile.target.cost import roofline
from qcompile.target.program import Kernel, KernelWork, Program, work_of
from qcompile.target.table import MeasuredCosts

FIXED = ""
"""Subject of the CostTable that holds the kernels no layer's precision changes."""


@dataclass(frozen=True)
class EstimateCost(Pass):
    """Price every (weight bits, activation bits) of every layer in seconds and bytes.

    The network is integerized uniformly once for each pair of precision steps of the target (see
    `Target.weight_steps`), so that a price is that of the very kernels that would be emitted.  Kernels that were
    never measured are measured on the device (batch 1) and cached; with `measure=False`, or without a backend, a
    roofline stands in and the table says so.
    """

    name: ClassVar[str] = "estimate-cost"
    levels: ClassVar[Levels] = ON_FLOAT
    requires = (RANGES,)
    provides = (COSTS,)

    threads: int = 1
    measure: bool = True

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        target = ctx.target
        pricer = _Pricer(graph, ctx, self.threads, self.measure)
        prices: dict[Bits, Mapping[str, float]] = {}
        weights = representatives(target.weight_bits, target.weight_steps)
        # Below the stored width layers read copies of values that others read too: a price of its own for each side.
        acts = representatives(target.act_bits, (*target.act_steps, STORED_BITS - 1))
        pairs = [(w, a) for w in dict.fromkeys(weights.values()) for a in dict.fromkeys(acts.values())]
        pricer.collect(pairs)
        pricer.measure_missing()
        for bits in pricer.programs:
            prices[bits] = pricer.price(bits)
        table = {FIXED: CostTable({(8, 8): prices[max(prices)][FIXED]}, {}, pricer.source)}
        for layer in Structure(graph).layers:
            numel = graph.const(graph.by_name[layer], "w").size
            seconds = {(w, a): prices[weights[w], acts[a]][layer] for w in target.weight_bits for a in target.act_bits}
            sizes = {w: packed_bytes(numel, w) for w in target.weight_bits}
            table[layer] = CostTable(seconds, sizes, pricer.source)
        report = Report(
            done=(f"{pricer.total} kernels, {pricer.fresh} measured now, costs are {pricer.source}",),
            facts={
                "source": pricer.source,
                "kernels": pricer.total,
                "measured_now": pricer.fresh,
                "estimated": pricer.guessed,
            },
        )
        return PassResult(graph.with_notes(graph.notes.with_table(COSTS, table)), report)


def step(bits: int, steps: Sequence[int]) -> int:
    """The precision step a width belongs to: the smallest step that is not below it."""
    return min((s for s in steps if s >= bits), default=max(steps))


def representatives(offered: Sequence[int], steps: Sequence[int]) -> dict[int, int]:
    """Offered width → the widest offered one of its step, whose price it shares."""
    return {bits: max(b for b in offered if step(b, steps) == step(bits, steps)) for bits in offered}


def searched_scales(graph: Graph, ctx: PassContext) -> ScaleMemo:
    """Weight scales of all layers at the widths that are priced."""
    widths = sorted(set(representatives(ctx.target.weight_bits, ctx.target.weight_steps).values()))

    def search() -> dict[str, Array]:
        layers = [(layer, graph.const(graph.by_name[layer], "w")) for layer in Structure(graph).layers]
        return {f"{bits} {layer}": weight_scales(w, bits) for layer, w in layers for bits in widths}

    found = recalled(ctx.work, lambda: digest("weight scales", graph.content_hash, widths), search)
    named = [(name.split(" ", 1), scale) for name, scale in found.items()]
    return {(layer, int(bits)): scale for (bits, layer), scale in named}


@dataclass
class _Pricer:
    """Programs of the uniform precisions and the prices of their kernels."""

    graph: Graph
    ctx: PassContext
    threads: int
    measure: bool
    programs: dict[Bits, Program] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    scales: ScaleMemo = field(init=False)
    offered: dict[tuple[Bits, str], tuple[str, ...]] = field(default_factory=dict)
    fresh: int = 0
    guessed: int = 0

    def __post_init__(self) -> None:
        self.scales = searched_scales(self.graph, self.ctx)

    @property
    def total(self) -> int:
        return len(self.seconds)

    @property
    def source(self) -> str:
        return "measured" if self._measuring else "roofline" if self.table is None else "shipped"

    @property
    def table(self) -> MeasuredCosts | None:
        """Costs that were measured elsewhere, on a device of this kind."""
        found: MeasuredCosts | None = self.ctx.data.get("costs")
        return found

    @property
    def _measuring(self) -> bool:
        return self.measure and self.ctx.backend is not None and self.ctx.costs is not None

    def collect(self, pairs: Sequence[Bits]) -> None:
        """Lower the network at each uniform precision, and see which implementations its kernels have."""
        # Looking at weights is NumPy's work, which leaves other threads alone.
        with ThreadPoolExecutor(available_cores()) as pool:
            for bits, (program, offered) in zip(pairs, pool.map(self._lowered, pairs), strict=True):
                self.programs[bits] = program
                self.offered |= {(bits, name): variants for name, variants in offered.items()}

    def _lowered(self, bits: Bits) -> tuple[Program, dict[str, tuple[str, ...]]]:
        """The program at one precision, and by kernel what is to be priced."""
        structure = Structure(self.graph)
        plan = {layer: BitChoice(*bits) for layer in structure.layers}
        integer = Integerizer(self.graph, self.graph.notes[RANGES], plan, self.scales).run()
        integer = CopyAtBoundary().run(integer, self.ctx).graph
        program = plan_program(integer, self.ctx.target)
        offered, backend = {}, self.ctx.backend
        for kernel in program.kernels:
            variants = backend.variants(kernel, program) if backend is not None else ("",)
            offered[kernel.name] = variants if self._measuring else self._foreseen(kernel, program, variants)
        return program, offered

    def _works(self) -> dict[str, tuple[KernelWork, Kernel, Program]]:
        found: dict[str, tuple[KernelWork, Kernel, Program]] = {}
        for bits, program in self.programs.items():
            for kernel in program.kernels:
                for variant in self.offered[bits, kernel.name]:
                    chosen = replace(kernel, variant=variant)
                    work = work_of(chosen, program)
                    found.setdefault(work.key, (work, chosen, program))
        return found

    def measure_missing(self) -> None:
        works = self._works()
        if not self._measuring:
            self.seconds = {key: self._estimated(*work) for key, work in works.items()}
            return
        backend, costs = self.ctx.backend, self.ctx.costs
        if backend is None or costs is None:
            raise InternalError("measuring needs a backend and a cost cache")
        known = measure_missing(works, backend, costs, self.threads, self.ctx.progress)
        self.fresh = known.fresh
        self.seconds = {key: measurement.median for key, measurement in known.items()}

    def _foreseen(self, kernel: Kernel, program: Program, variants: tuple[str, ...]) -> tuple[str, ...]:
        """Where nothing is measured: the implementations of the table, else the preferred one, which is then built."""
        if self.table is None:
            return variants[:1]
        return tuple(v for v in variants if work_of(kernel, program, v).key in self.table.rows) or variants[:1]

    def _estimated(self, work: KernelWork, kernel: Kernel, program: Program) -> float:
        if self.table is not None and (known := self.table.seconds(work.key)) is not None:
            return known
        self.guessed += 1
        backend = self.ctx.backend
        if isinstance(backend, Estimating):
            return backend.estimate(kernel, program)
        return roofline(work, self.ctx.target)

    def price(self, bits: Bits) -> Mapping[str, float]:
        """Seconds by layer, and under FIXED the sum over the kernels that belong to no layer."""
        program, structure = self.programs[bits], Structure(self.graph)
        owners = _owners(program, structure)
        prices = dict.fromkeys((*structure.layers, FIXED), 0.0)
        for kernel in program.kernels:
            variants = self.offered[bits, kernel.name]
            seconds = {v: self.seconds[work_of(kernel, program, v).key] for v in variants}
            prices[owners[kernel.name]] += seconds[fastest(variants, seconds)]
        return prices


def _owners(program: Program, structure: Structure) -> dict[str, str]:
    """Kernel → the layer whose precision decides its price, or FIXED.

    A copy of a stored value at fewer bits belongs to the first of the tied layers that read it.
    """
    layer_of_group = {group: layers[0] for group, layers in structure.tied().items()}
    owners = {}
    for kernel in program.kernels:
        origin = kernel.anchor.origin[0] if kernel.anchor.origin else ""
        copied = kernel.anchor.name.rsplit(":", 1)[-1].startswith("u")
        if kernel.anchor.op in ("conv2d", "linear"):
            owners[kernel.name] = origin
        elif copied and origin in structure.group_of:
            owners[kernel.name] = layer_of_group.get(structure.group_of[origin], FIXED)
        else:
            owners[kernel.name] = FIXED
    return owners
