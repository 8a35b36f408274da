"""Trained networks as folders that others can use: weights, configuration, a model card."""
