"""Tell whether a device computes in the precision asked for, or only emulates it. No torch.

torch runs bf16 on every device. Where the hardware has no arithmetic for it, every value is
converted there and back: a result, but a slow one (docs/speed.md has what was measured, and where).
"""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress

from resnests.config.schema import Config
from resnests.cpuinfo import cpu_info
from resnests.sweep.devices import Allocation

# By platform.machine(): what a CPU of that kind has where it computes in bf16
BF16 = {
    "x86_64": ("avx512_bf16", "amx_bf16"),
    "aarch64": ("bf16",),
    "arm64": ("FEAT_BF16",),  # of Apple
}
AMPERE = (8, 0)  # compute capability of the first GPUs with bf16 and TF32


def warn_of_emulation(configs: Iterable[Config], allocation: Allocation) -> None:
    """Say which precisions of `configs` this machine only emulates, and what that costs."""
    for precision in sorted({used(config) for config in configs}):
        if line := emulation(precision, allocation.kind, allocation.gpus):
            print(f"warning: {line}", file=sys.stderr)


def used(config: Config) -> str:
    """Return the precision in which `config` computes: an analysis is always in fp32."""
    trains = config.task != "analyze" or config.analysis.train
    return config.trainer.precision if trains or config.trainer.precision != "bf16" else "fp32"


def emulation(precision: str, kind: str, gpus: Sequence[str]) -> str | None:
    """Return what is to be said of `precision` on devices of `kind`, for cuda the UUIDs `gpus`;
    None where they have it, and where that cannot be seen.
    """
    asked = f"trainer.precision={precision}"
    if kind == "cpu" and precision == "bf16":
        wanted = BF16.get(platform.machine(), ())
        has = _cpu_flags()
        if wanted and has and not has.intersection(wanted):
            lacks = f"lacks {' and '.join(wanted)}: expect 0.4x the speed of fp32, or less"
            return f"{asked} is emulated on this CPU, which {lacks}"
    if kind == "cuda" and precision in ("bf16", "tf32"):
        old = sorted({name for name, capability in _models(gpus) if capability < AMPERE})
        if old:
            does = {
                "bf16": "is emulated on {}: expect less than the speed of fp32",
                "tf32": "is fp32 on {}, and as slow",
            }[precision]
            return f"{asked} {does.format(', '.join(old))}, as it came with compute capability 8.0"
    return None


def _cpu_flags() -> set[str]:
    """Return what the first CPU can do in the system's words, nothing where it does not say."""
    told = cpu_info()
    if flags := told.get("flags") or told.get("Features"):
        return set(flags.split())
    if platform.system() != "Darwin":
        return set()
    with suppress(OSError, subprocess.SubprocessError):
        command = ["sysctl", "hw.optional.arm"]
        lines = subprocess.run(command, capture_output=True, text=True, timeout=10).stdout
        words = [line.rpartition(".")[2].partition(":") for line in lines.splitlines()]
        return {name for name, _, value in words if value.strip() == "1"}
    return set()


def _models(gpus: Sequence[str]) -> list[tuple[str, tuple[int, int]]]:
    """Name and compute capability of each GPU that NVML tells them of."""
    import pynvml

    found = []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        for uuid in dict.fromkeys(gpus):
            with suppress(pynvml.NVMLError):
                handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
                capability = tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle))
                found.append((pynvml.nvmlDeviceGetName(handle), capability))
    finally:
        pynvml.nvmlShutdown()
    return found
