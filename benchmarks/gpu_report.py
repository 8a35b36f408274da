"""Makes the rows of benchmarks.gpu_session a page of Markdown."""

from __future__ import annotations

from typing import Any

from benchmarks.process import table

RUNS, EPOCHS, IMAGES = 56, 200, 50_000  # of a network in the paper's grid
COLUMNS = {
    "part": "part",
    "precision": "precision",
    "mode": "mode",
    "channels_last": "channels last",
    "compile": "compile",
    "count": "processes",
    "streams": "streams",
    "images_s": "images/s",
    "ms_step": "ms a step",
    "host_ms_step": "of the host",
    "device_ms_step": "of kernels",
    "kernels_step": "kernels",
    "evaluation_s": "evaluation, s",
    "evaluation_s_of_batches": "of batches of",
    "plain_evaluation_s": "one by one",
    "last_batch_ms": "last batch so, ms",
    "first_step_s": "first step, s",
    "reserved_GiB": "GiB",
}


def report(rows: list[dict[str, Any]]) -> str:
    """Return what was measured, what was run, and what the paper's grid takes at the best rates."""
    measured = [row for row in rows if "arch" in row]
    cells = [[_text(row.get(key)) for key in COLUMNS] for row in measured if "failed" not in row]
    parts = [table(list(COLUMNS.values()), cells)] if cells else []
    lines = [f"- {row['part']}: {row['failed']}" for row in measured if "failed" in row]
    for row in rows:
        if "code" in row:
            last = " / ".join(row["tail"][-2:])[:200]
            lines.append(f"- {row['part']}: status {row['code']} in {row['seconds']} s: {last}")
    best: dict[str, float] = {}
    for row in measured:
        best[row["arch"]] = max(best.get(row["arch"], 0.0), row.get("images_s", 0.0))
    hours = [
        [arch, f"{rate:.0f}", f"{RUNS * EPOCHS * IMAGES / rate / 3600:.1f}"]
        for arch, rate in best.items()
        if rate
    ]
    if hours:
        parts.append(table(["network", "best images/s", f"hours of {RUNS} trainings"], hours))
    return "\n\n".join([*parts, "\n".join(lines)]) + "\n"


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_text(one)}" for key, one in value.items())
    return f"{value:.3g}" if isinstance(value, float) and value < 1000 else f"{value}"
