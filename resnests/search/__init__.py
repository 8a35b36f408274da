"""Choosing values on held-out images: Optuna asks, the processes of a sweep train. No torch."""
