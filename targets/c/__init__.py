"""Portable C99: scalar loops for any compiler."""
