"""Measure the paper's guarantees on trained networks."""
