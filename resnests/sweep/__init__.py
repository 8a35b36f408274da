"""Many runs: plan, devices, child processes, display. No torch but in the worker."""
