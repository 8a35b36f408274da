"""Run the jobs of a sweep: on this machine, in Slurm or in Ray. No torch."""
