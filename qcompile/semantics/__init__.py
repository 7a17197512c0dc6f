"""The meaning of the integer level: scalar rules, the interpreter, and range proofs.  NumPy only."""
