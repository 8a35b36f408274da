"""Start jobs by Hydra's launcher: joblib by default. No torch.

A launcher composes the configuration of each job from the words of the command line. A sweep has
done so already and has checked what came out, and the files may have changed since. So a job gets
the very configuration of its spec, and Hydra's own part as it was composed for the sweep.
"""

from __future__ import annotations

import copy
import signal
from collections.abc import Sequence
from typing import Any

from hydra._internal.config_loader_impl import get_overrides_dirname
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict

from resnests.environment import RUN
from resnests.sweep.devices import Allocation
from resnests.sweep.protocol import SweepFolder

_RUN_KEY = f"hydra.job.env_set.{RUN}"


def launch_jobs(
    launcher: Any,
    words: Sequence[Sequence[str]],
    numbers: Sequence[int],
    allocation: Allocation,
    folder: SweepFolder,
) -> None:
    """Start a job for each of the runs of these numbers, and wait until all are over.

    `words` are the overrides of each run of the sweep. Raises what the launcher raises, such as for
    a process of its own that died.
    """
    # Processes that are started from this thread inherit it. joblib's resource tracker survives
    # Ctrl-C by itself, and would complain in tracebacks of a terminal that is closed.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    if hasattr(launcher, "joblib"):
        # One run a job: joblib would bundle runs where it finds the first ones short.
        launcher.joblib |= {"n_jobs": allocation.concurrent, "batch_size": 1}
    context = launcher.hydra_context
    loader: Any = SpecLoader(context.config_loader, folder)
    launcher.hydra_context = HydraContext(config_loader=loader, callbacks=context.callbacks)
    try:
        jobs = [[*words[number], f"++{_RUN_KEY}='{number}'"] for number in numbers]
        for done in launcher.launch(jobs, initial_job_idx=0):
            _ = done.return_value  # raises what the job raised
    finally:
        launcher.hydra_context = context


class SpecLoader:
    """Gives a launcher the configurations of jobs; for all else it is Hydra's own loader."""

    def __init__(self, loader: ConfigLoader, folder: SweepFolder) -> None:
        self.loader, self.folder = loader, folder

    def __getattr__(self, name: str) -> Any:
        if name == "loader":  # it is being unpickled
            raise AttributeError(name)
        return getattr(self.loader, name)

    def load_sweep_config(self, master: DictConfig, words: list[str]) -> DictConfig:
        """Return `master`, the configuration of the sweep, with the values of one of its jobs."""
        overrides = OverridesParser.create().parse_overrides(words)
        (run,) = (override for override in overrides if override.key_or_group == _RUN_KEY)
        task = [override for override in overrides if not override.is_hydra_override()]
        spec = self.folder.read(int(str(run.value())))
        config = copy.deepcopy(master)
        if spec:  # else the sweep stops
            hydra, config = config.hydra, OmegaConf.create(spec.config)
            config.hydra = hydra
        with open_dict(config):
            job, choices = config.hydra.job, config.hydra.runtime.choices
            job.env_set[RUN] = run.value()
            job.chdir = False  # paths are those of the folder in which the command was given
            style = job.config.override_dirname
            job.override_dirname = get_overrides_dirname(
                task, style.exclude_keys, style.item_sep, style.kv_sep
            )
            config.hydra.overrides.task = [override.input_line for override in task]
            for override in task:
                if override.key_or_group in choices:
                    choices[override.key_or_group] = override.value()
        return config
