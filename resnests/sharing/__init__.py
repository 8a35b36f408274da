"""Make folders of trained networks that others can use: weights, configuration, a model card."""
