"""Read what Linux says of the processor, in one place for all who ask."""

from __future__ import annotations

from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def cpu_info() -> dict[str, str]:
    """Return what the system says of the first processor, {} where it says nothing."""
    try:
        first = CPUINFO.read_text(errors="replace").strip().partition("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
