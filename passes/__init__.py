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
    "movement-to-slice": "passes.canonicalize.movement_to_slice:MovementToSlice",
    "drop-noop-movement": "passes.canonicalize.drop_noop_movement:DropNoopMovement",
    "split-tail": "passes.canonicalize.split_tail:SplitTail",
    "canonical-names": "passes.canonicalize.canonical_names:CanonicalNames",
    # analysis
    "calibrate-ranges": "passes.analysis.calibrate_ranges:CalibrateRanges",
    "measure-weight-error": "passes.analysis.measure_weight_error:MeasureWeightError",
    "estimate-hessian-trace": "passes.analysis.estimate_hessian_trace:EstimateHessianTrace",
    "estimate-trace-loss": "passes.analysis.estimate_trace_loss:EstimateTraceLoss",
    "estimate-top-eigenvalue": "passes.analysis.estimate_top_eigenvalue:EstimateTopEigenvalue",
    "estimate-fisher-loss": "passes.analysis.estimate_fisher_loss:EstimateFisherLoss",
    "estimate-output-fisher": "passes.analysis.estimate_output_fisher:EstimateOutputFisher",
    "estimate-fisher-gram": "passes.analysis.estimate_fisher_gram:EstimateFisherGram",
    "estimate-hvp-rows": "passes.analysis.estimate_hvp_rows:EstimateHvpRows",
    "measure-single-loss": "passes.analysis.measure_single_loss:MeasureSingleLoss",
    "measure-output-noise": "passes.analysis.measure_output_noise:MeasureOutputNoise",
    "measure-output-gram": "passes.analysis.measure_output_gram:MeasureOutputGram",
    "measure-pair-loss": "passes.analysis.measure_pair_loss:MeasurePairLoss",
    "predict-loss": "passes.analysis.predict_loss:PredictLoss",
    "check-prediction": "passes.analysis.check_prediction:CheckPrediction",
    "group-layers": "passes.analysis.group_layers:GroupLayers",
    "estimate-cost": "passes.analysis.estimate_cost:EstimateCost",
    # plan
    "solve-bits": "passes.plan.solve_bits:SolveBits",
    "uniform-bits": "passes.plan.uniform_bits:UniformBits",
    "plan-from-file": "passes.plan.plan_from_file:PlanFromFile",
    "select-plan": "passes.plan.select_plan:SelectPlan",
    "confirm-plan": "passes.plan.confirm_plan:ConfirmPlan",
    "mix-metrics": "passes.plan.mix_metrics:MixMetrics",
    "plan-front": "passes.plan.plan_front:PlanFront",
    "bisect-plan": "passes.plan.bisect_plan:BisectPlan",
    # quantize
    "equalize-layers": "passes.quantize.equalize_layers:EqualizeLayers",
    "round-candidates": "passes.quantize.round_candidates:RoundCandidates",
    "round-weights": "passes.quantize.round_weights:RoundWeights",
    "tune-scales": "passes.quantize.tune_scales:TuneScales",
    "integerize": "passes.quantize.integerize:Integerize",
    # lower
    "copy-at-boundary": "passes.lower.copy_at_boundary:CopyAtBoundary",
    "prove-ranges": "passes.lower.prove_ranges:ProveRanges",
    "plan-memory": "passes.lower.plan_memory:PlanMemory",
    "choose-kernels": "passes.lower.choose_kernels:ChooseKernels",
    "emit": "passes.lower.emit:Emit",
}
"""kebab-case name → "module:Class", imported on first use."""
