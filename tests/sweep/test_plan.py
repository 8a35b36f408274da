"""Test how the runs of a sweep are told apart."""

import pytest
from helpers import make_config, write_run

from resnests.config.schema import Config
from resnests.runs.digests import with_digests
from resnests.runs.directory import RunDirectory
from resnests.sweep.plan import plan_runs, usable_runs


@pytest.fixture
def evaluations(tmp_path, monkeypatch) -> list[Config]:
    monkeypatch.chdir(tmp_path)
    for name in ("a.pt", "b.pt"):
        (tmp_path / name).write_text(name)
    words = ("dataset=digits", "arch=resnet8", "task=evaluate")
    return with_digests([make_config(*words, f"weights={name}") for name in ("a.pt", "b.pt")])


def test_files_of_given_weights_are_told_apart_by_their_paths(evaluations):
    assert [run.label.split()[2] for run in plan_runs(evaluations)] == [
        "weights=a.pt",
        "weights=b.pt",
    ]


def test_an_analysis_of_a_run_that_cannot_be_read_does_not_stop_the_others(tmp_path, capsys):
    words = ("dataset=digits", "arch=resnet8", "variant=a_resnest", f"runs_dir={tmp_path}")
    configs = [make_config(*words, "task=analyze", f"seed={seed}") for seed in (0, 1)]
    barred, own = (RunDirectory.of(config) for config in configs)
    for folder in (barred, barred.analysed):
        folder.record_file.mkdir(parents=True)  # which nobody can read, root included
    write_run(make_config(*words, "seed=1"), "complete")
    own.analysed.weights_file.write_bytes(b"")
    runs = plan_runs(configs)
    todo, others = usable_runs(runs)
    assert ([run.index for run in todo], [run.index for run in others]) == ([1], [0])
    assert "passed over" in capsys.readouterr().err
