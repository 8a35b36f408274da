"""Test how the runs of a sweep are told apart."""

import pytest
from helpers import make_config

from resnests.config.schema import Config
from resnests.runs.digests import with_digests
from resnests.sweep.plan import plan_runs


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
