"""What a worker does with a Config: train, evaluate or analyze one run, or try its pieces first."""
