"""How a network is trained: loop, step, optimizer and schedule, checkpoints, provenance."""
