"""Know the words in which CUDA, its libraries and torch blame a device. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator

# In lower case
DEVICES = (
    "cuda error",
    "cudnn_status_",
    "cudnn error",
    "cublas_status_",
    "nccl error",
    "uncorrectable ecc",
    "busy or unavailable",
    "no cuda gpus are available",
    "no cuda-capable device",
    "no nvidia driver",
    "nvidia driver on your system is too old",
    "not compiled with cuda enabled",
    "no kernel image is available",
    "unexpected error from cuda",
    "cuda driver initialization failed",
)
FULL = ("out of memory", "_alloc_failed")
# What cannot be captured as a CUDA graph is the run's
RUNS = ("device-side assert", "cublas_status_not_supported", "captur", *FULL)
# What a capture cannot bring about by itself, such as by a call that is not allowed in one
FATAL = ("launch failure", "illegal memory", "illegal instruction", "ecc", "busy or unavailable")


def words_of_device(error: BaseException) -> str | None:
    """Return what `error`, or what it came from, says in words of CUDA's for a device at fault."""
    for one in chain(error):
        text = str(one).lower()
        if any(mark in text for mark in DEVICES) and not any(mark in text for mark in RUNS):
            return str(one).splitlines()[0]
    return None


def is_fatal(error: BaseException) -> bool:
    """Return whether `error` would have come without a capture, in which it came, too."""
    said = (words_of_device(error) or "").lower()
    return any(mark in said for mark in FATAL)


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, and those that it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
