"""estimate-top-eigenvalue: the largest curvature of the loss in each layer's weights (HAWQ), a diagnostic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from passes.analysis.samples import first_samples
from passes.analysis.sweep import unit_losses
from passes.structure import Structure
from qcompile.errors import PassContractError, UsageError
from qcompile.exec.torch_exec import TorchGraph
from qcompile.exec.torch_hvp import LayerHessian
from qcompile.ir import Graph
from qcompile.pm.base import ON_FLOAT, Levels, Pass, PassContext, PassResult, Report
from qcompile.pm.facts import TOP_EIGENVALUE, Eigenvalue
from qcompile.pm.work import digest


@dataclass(frozen=True)
class EstimateTopEigenvalue(Pass):
    """Power iteration with Hessian-vector products, layer by layer, from a normalised Gaussian start.

    HAWQ orders layers by the top eigenvalue per weight and chooses their bits by hand; nothing here plans with it.  The
    loss is the label-free one, so its Hessian is positive semi-definite.  Finished layers are kept.

    Attributes:
        samples: calibration samples, the first ones.
        iterations: at most so many products.
        tolerance: relative change of the eigenvalue that is small enough (PyHessian's rule).
        batch: samples run at a time.
    """

    name: ClassVar[str] = "estimate-top-eigenvalue"
    levels: ClassVar[Levels] = ON_FLOAT
    provides = (TOP_EIGENVALUE,)
    needs = ("calibration",)

    samples: int = 32
    iterations: int = 50
    tolerance: float = 1e-3
    batch: int = 8

    def run(self, graph: Graph, ctx: PassContext) -> PassResult:
        if min(self.samples, self.iterations, self.batch) < 1:
            raise UsageError("samples, iterations and batch must be at least 1")
        if ctx.calibration is None:
            raise PassContractError("estimate-top-eigenvalue needs calibration samples")
        layers = Structure(graph).layers
        runner = TorchGraph(graph)
        losses = unit_losses(graph, ctx)
        batches = list(first_samples(graph, ctx.calibration, self.samples, self.batch))
        depends = [self.spec(), graph.content_hash, ctx.seed, [batch.digest for batch in batches]]
        table = {}
        for done, layer in enumerate(layers):
            ctx.progress(self.name, done, len(layers))
            key = digest(*depends, layer)
            kept = None if ctx.work is None else ctx.work.get(key)
            if kept is None:
                start = ctx.rng(f"{self.name}:{layer}").normal(size=runner.weights[layer].shape)
                hessian = LayerHessian(runner, layer, losses, [batch.inputs for batch in batches])
                kept = hessian.top_eigenvalue(start, self.iterations, self.tolerance)
                if ctx.work is not None:
                    ctx.work.put(key, kept)
            table[layer] = Eigenvalue(float(kept["value"]), int(kept["iterations"]), float(kept["change"]))
        largest = max(table, key=lambda layer: table[layer].value)
        report = Report(done=(f"{largest} has the largest: {table[largest].value:.3g}",))
        return PassResult(graph.with_notes(graph.notes.with_table(TOP_EIGENVALUE, table)), report)
