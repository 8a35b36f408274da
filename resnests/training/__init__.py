"""Train a network: loop, step, optimizer and schedule, checkpoints, provenance."""
