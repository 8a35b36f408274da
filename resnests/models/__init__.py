"""Define the networks, their weights on disk, and the kernel that makes them faster on CPUs."""
