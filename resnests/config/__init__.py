"""What a run is: the typed configuration, its identity, and how Hydra composes it. No torch."""
