"""Evaluators of the float graph: NumPy, torch (differentiable), and onnxruntime as an oracle.

Import the one you need: `float_exec` and `unary` need NumPy only.
"""
