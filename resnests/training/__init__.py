"""One run, from a Config to a finished run directory."""
