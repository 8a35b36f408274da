"""Hold the features of a split as rows to solve with: float64, standardised, in memory or on disk.

Every operation goes over parts of the rows, so that what a file holds is read part by part.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

PART = 1 << 27  # bytes that are worked on at a time
CACHED = 1 << 21  # bytes that are read twice on a CPU before they leave its cache


@dataclass
class Rows:
    """Holds values (N, 1 + d), whose first column is 1, and labels (N,); solved on `device`."""

    values: Tensor
    labels: Tensor
    device: torch.device

    @classmethod
    def empty(cls, count: int, features: int, device: torch.device, file: Path | None) -> Rows:
        """Make room for `count` images, on `device`, or mapped from `file` where that is given."""
        shape = (count, 1 + features)
        if file is None:
            values = torch.empty(shape, dtype=torch.float64, device=device)
        else:
            values = torch.from_numpy(np.memmap(file, np.float64, "w+", shape=shape))
            file.unlink()  # it is there as long as it is mapped, and gone with the process
        values[:, 0] = 1
        return cls(values, torch.empty(count, dtype=torch.int64, device=values.device), device)

    def __len__(self) -> int:
        return len(self.labels)

    def parts(
        self, end: int | None = None, most: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the first `end` columns and the labels of some images at a time, on the device: at
        most `most` bytes of features, PART where that is None.
        """
        size = max(256, (most or PART) // (8 * self.values.shape[1]))
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield self.values[part, :end].to(self.device), self.labels[part].to(self.device)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return mean and deviation of each feature, (d,); 1 for one that never changes."""
        mean = torch.stack([x[:, 1:].sum(0) for x, _ in self.parts()]).sum(0) / len(self)
        squares = torch.stack([(x[:, 1:] - mean).square().sum(0) for x, _ in self.parts()])
        std = (squares.sum(0) / len(self)).sqrt()
        return mean, torch.where(std > 1e-6 * (mean.abs() + 1e-12), std, 1.0)

    def standardise(self, mean: Tensor, std: Tensor) -> None:
        """Standardise in place, by the moments of the training images."""
        mean, std = mean.to(self.values.device), std.to(self.values.device)
        size = max(256, PART // (8 * self.values.shape[1]))
        for start in range(0, len(self), size):
            self.values[start : start + size, 1:].sub_(mean).div_(std)

    def through(self, basis: Tensor, file: Path | None) -> Rows:
        """Return rows [1, `basis` (m, d) times the features], mapped from `file` where given."""
        result = Rows.empty(len(self), len(basis), self.device, file)
        result.labels[:] = self.labels
        start = 0
        for x, _ in self.parts():
            result.values[start : start + len(x), 1:] = (x[:, 1:] @ basis.T).to(result.values)
            start += len(x)
        return result
