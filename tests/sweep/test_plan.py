"""Test how the runs of a sweep are told apart."""

from dataclasses import replace

import pytest
from helpers import make_config, write_run

from resnests.config.schema import Config
from resnests.errors import UserError
from resnests.runs.analysis import Analysis
from resnests.runs.digests import with_digests
from resnests.runs.directory import RunDirectory
from resnests.runs.weights import digest, export_target
from resnests.sweep.plan import Run, plan_runs, usable_runs


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


def test_one_run_with_two_values_of_what_is_no_part_of_its_identity_is_refused(tmp_path):
    words = ("dataset=digits", "arch=resnet8", f"runs_dir={tmp_path}")
    runs = [make_config(*words, f"trainer.eval_every={every}") for every in (1, 1, 2)]
    assert len(plan_runs(runs[:2])) == 1
    with pytest.raises(UserError, match=r"trainer.eval_every=1,2: expected one value, as it"):
        plan_runs(runs)


def test_a_seed_of_a_folder_whose_weights_were_replaced_is_evaluated_anew(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = make_config("dataset=digits", "arch=resnet8", "task=evaluate", "weights=.")
    file = export_target(config)
    file.parent.mkdir()
    file.write_bytes(b"weights")
    (config,) = with_digests([config])
    directory = write_run(config, "complete", weights_sha256=digest(file))
    assert Run(config, directory).action() == "skip"
    file.write_bytes(b"other weights")
    assert Run(config, directory).action() == "run"
    assert Run(config, directory).planned().replaces == directory.record_digest()


@pytest.mark.parametrize("word", ["dataset.train_limit=20", "dataset.val_fraction=0.5"])
def test_given_weights_are_analysed_anew_on_other_training_images(tmp_path, monkeypatch, word):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pt").write_bytes(b"weights")
    words = ("dataset=digits", "arch=resnet8", "task=analyze", "weights=a.pt")
    config, other = with_digests([make_config(*words), make_config(*words, word)])
    directory = RunDirectory.of(config)
    assert directory.path == RunDirectory.of(other).path
    sha256 = digest(tmp_path / "a.pt")
    write_run(config, "complete", weights_sha256=sha256)
    directory.write_analysis(done := Analysis.of(config, sha256))
    assert Run(config, directory).action() == "skip"
    assert Run(other, directory).action() == "run"
    assert not done.is_of(sha256, other), "nor does an interrupted one go on"
    directory.write_analysis(replace(done, images=None))
    assert Run(other, directory).action() == "skip", "an earlier version did not tell"


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
