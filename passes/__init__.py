"""The passes: one per file, listed here by name.  They see targets as data and never import TVM."""

from collections.abc import Mapping

__qcompile_api__ = 1
"""Marks this package as qcompile's; `qcompile.pm.registry` refuses another `passes` that shadows it."""

CATALOGUE: Mapping[str, str] = {
    # canonicalize
    "fold-constants": "passes.canonicalize.fold_constants:FoldConstants",
    "fold-batch-norm": "passes.canonicalize.fold_batch_norm:FoldBatchNorm",
    "fold-affine": "passes.canonicalize.fold_affine:FoldAffine",
    "fuse-unary": "passes.canonicalize.fuse_unary:FuseUnary",
    "normalize-pooling": "passes.canonicalize.normalize_pooling:NormalizePooling",
    "merge-clips": "passes.canonicalize.merge_clips:MergeClips",
    "drop-noop-movement": "passes.canonicalize.drop_noop_movement:DropNoopMovement",
    "split-tail": "passes.canonicalize.split_tail:SplitTail",
    "canonical-names": "passes.canonicalize.canonical_names:CanonicalNames",
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
    "round-weights": "passes.quantize.round_weights:RoundWeights",
    "integerize": "passes.quantize.integerize:Integerize",
    # lower
    "copy-at-boundary": "passes.lower.copy_at_boundary:CopyAtBoundary",
    "prove-ranges": "passes.lower.prove_ranges:ProveRanges",
    "plan-memory": "passes.lower.plan_memory:PlanMemory",
    "choose-kernels": "passes.lower.choose_kernels:ChooseKernels",
    "emit": "passes.lower.emit:Emit",
}
"""kebab-case name → "module:Class", imported on first use."""
