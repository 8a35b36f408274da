"""Do what a Config asks for: train, evaluate or analyze one run, or try its pieces first."""
