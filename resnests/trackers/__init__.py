"""Copy runs to TensorBoard, Weights & Biases, MLflow, or a tracker of the user's. No torch.

The run directory stays the truth. A tracker gets what it lacks of it, from a process beside the
sweep (sync.py) or by `aggregate.py --to` (export.py), so that no training ever waits for one or
fails because of one.
"""
