"""Sweeps on more than this machine: jobs in the queue of Slurm or of Ray. No torch."""
