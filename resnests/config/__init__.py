"""Define a run: its typed configuration, its identity, and how Hydra composes it. No torch."""
