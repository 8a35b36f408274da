"""Copy runs to Weights & Biases, where a cell is a group."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

import wandb

from resnests.trackers.tracker import Row, TrackedRun

OFFLINE = "offline-run-*-{}"


class WandB:
    """Writes the whole curve each time: offline in place of the files before it, and online W&B
    passes over the steps that it has.
    """

    def __init__(self, project: str, entity: str | None, mode: str, folder: str) -> None:
        self.project, self.entity, self.mode, self.folder = project, entity, mode, Path(folder)

    def start(self, run: TrackedRun) -> set[int]:
        for old in self.folder.glob(f"wandb/{OFFLINE.format(run.id)}"):
            shutil.rmtree(old)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.run = wandb.init(
            project=self.project,
            entity=self.entity,
            mode=cast(Any, self.mode),
            dir=str(self.folder),
            id=run.id,
            resume=None if self.mode == "offline" else "allow",
            name=run.name,
            group=run.group,
            tags=[f"{key}={value}"[:64] for key, value in run.tags.items()],  # W&B's limit
            config=dict(run.hyperparameters) | dict(run.tags),
            reinit="create_new",  # beside those of other runs
            settings=wandb.Settings(
                console="off", silent=True, disable_git=True, save_code=False, x_disable_stats=True
            ),
        )
        return set()

    def epoch(self, epoch: int, values: Row, time: float) -> None:
        self.run.log(values, step=epoch, commit=True)

    def end(self, status: str, metrics: Row, figures: dict[str, bytes]) -> None:
        summary = {f"final/{name}": value for name, value in metrics.items()}
        self.run.summary.update(summary | {"status": status})
        for name, png in figures.items():
            file = Path(self.run.dir) / f"{name}.png"
            file.write_bytes(png)
            self.run.summary[f"figures/{name}"] = wandb.Image(str(file))
        self.run.finish(exit_code=0 if status in ("complete", "running") else 1)
