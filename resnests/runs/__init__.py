"""Define the run directory, the only bridge between training and results. No torch."""
