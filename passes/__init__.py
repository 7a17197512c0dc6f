"""The passes: one per file, listed here by name.  They see targets as data and never import TVM."""

from collections.abc import Mapping

__qcompile_api__ = 1
"""Marks this package as qcompile's; `qcompile.pm.registry` refuses another `passes` that shadows it."""

CATALOGUE: Mapping[str, str] = {
    # canonicalize
    # analysis
    "calibrate-ranges": "passes.analysis.calibrate_ranges:CalibrateRanges",
    "measure-weight-error": "passes.analysis.measure_weight_error:MeasureWeightError",
    "estimate-hessian-trace": "passes.analysis.estimate_hessian_trace:EstimateHessianTrace",
    "predict-loss": "passes.analysis.predict_loss:PredictLoss",
    "group-layers": "passes.analysis.group_layers:GroupLayers",
    "estimate-cost": "passes.analysis.estimate_cost:EstimateCost",
    # plan
    "solve-bits": "passes.plan.solve_bits:SolveBits",
    "uniform-bits": "passes.plan.uniform_bits:UniformBits",
    "plan-from-file": "passes.plan.plan_from_file:PlanFromFile",
    "select-plan": "passes.plan.select_plan:SelectPlan",
    # quantize
    "integerize": "passes.quantize.integerize:Integerize",
    # lower
    "prove-ranges": "passes.lower.prove_ranges:ProveRanges",
    "plan-memory": "passes.lower.plan_memory:PlanMemory",
    "choose-kernels": "passes.lower.choose_kernels:ChooseKernels",
}
"""kebab-case name → "module:Class", imported on first use."""
