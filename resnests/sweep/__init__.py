"""Bring many runs to their end: plan, devices, processes, display. No torch but in the worker."""
