"""python run.py task=analyze and python aggregate.py --analysis, as a user has them."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from helpers import TINY, make_config, run_command

from resnests import load_runs
from resnests.analysis import quantities, second_order
from resnests.config.schema import Config
from resnests.models.weights import read_torch
from resnests.runs.analysis import LAST_BLOCK
from resnests.runs.directory import RunDirectory, find_runs
from resnests.sweep import worker
from resnests.sweep.devices import allocate
from resnests.sweep.drive import run_single
from resnests.sweep.plan import Run
from resnests.sweep.stop import Stop
from resnests.tasks.experiment import run_experiment

SMALL = (*TINY, "dataset.train_limit=300", "arch.widths=[10,12]", "trainer.epochs=1")
ANALYZE = (*SMALL, "task=analyze")


@pytest.mark.slow
def test_runs_are_analysed_into_their_directories_and_tabled(tmp_path):
    grid = ("variant=standard,resnest,a_resnest", "seed=0,1")
    assert run_command("-m", *SMALL, *grid, cwd=tmp_path).returncode == 0
    done = run_command("-m", *ANALYZE, *grid, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(", bound ") == 4
    assert done.stdout.count(", ε ") == 4
    runs = list(find_runs(tmp_path / "runs"))
    assert len(runs) == 6, "analyses are no runs"
    for run in runs:
        analysis, record = run.analysis.read_analysis(), run.analysis.read_record()
        assert record.status == "complete"
        solved = [s for s in analysis.solves[1:] if s.quantity != LAST_BLOCK]
        assert all(solve.value is not None for solve in solved)
        assert analysis.logits_error is None or analysis.logits_error < 1e-3
        trained = run.read_record()
        assert record.test_accuracy == trained.test_accuracy
        assert record.test_loss == pytest.approx(trained.test_loss, rel=1e-5)
    again = run_command("-m", *ANALYZE, *grid, cwd=tmp_path)
    assert "nothing to do" in again.stdout
    other = run_command(
        "-m", *ANALYZE, *grid, "analysis.l2=0.01", "sweep.dry_run=true", cwd=tmp_path
    )
    assert "6 to run" in other.stdout, "another penalty is another analysis"

    tables = run_command("--analysis", cwd=tmp_path, script="aggregate.py")
    assert tables.returncode == 0, tables.stderr
    assert "(c) bound" in tables.stdout
    assert "Learning rates: 0.01 (ResNEst), 0.1 (Standard, A-ResNEst); differences" in tables.stdout
    frame = load_runs(tmp_path / "runs")
    resnest = frame[frame["variant"] == "resnest"]
    gap = resnest["analysis.last_maps"] - resnest["analysis.bound"]
    assert (gap - resnest["analysis.eps"]).abs().max() < 1e-12
    whole = run_command("--output", "out/", cwd=tmp_path, script="aggregate.py")
    assert whole.returncode == 0, whole.stderr
    figures = {path.stem for path in (tmp_path / "out" / "figures").glob("*.png")}
    assert {"blocks_exact_digits_tiny", "drops_pooled_digits_tiny"} <= figures
    assert "least risks on the training images" in (tmp_path / "out" / "report.html").read_text()


@pytest.fixture
def short_descents(monkeypatch):
    monkeypatch.setattr(second_order, "WORK", 0)


def narrow(folder, *overrides: str) -> Config:
    """Return a single-stage ResNEst, whose analysis takes a tenth of a second."""
    words = ("dataset=digits", "dataset.train_limit=200", "dataset.test_limit=60")
    words += ("arch=single_stage", "arch.width=10", "variant=resnest", "trainer.epochs=2")
    return make_config(*words, f"runs_dir={folder}", *overrides)


def analysed(folder, *overrides: str) -> tuple[Config, RunDirectory]:
    """Train such a network and analyse it; return what was asked for, and where it is."""
    assert run_experiment(narrow(folder, *overrides)) == "complete"
    config = narrow(folder, *overrides, "task=analyze")
    assert run_experiment(config) == "complete"
    return config, RunDirectory.of(config)


def again(config: Config) -> str:
    """Do what a sweep would do with `config`, in this process; return its action."""
    run = Run(config, RunDirectory.of(config))
    if (action := run.action()) != "skip":
        one = worker.Worker(config, allocate(config, 1), Stop(), run.planned().replaces)
        assert run_experiment(config, clear=one._clear if one._starts_afresh() else None)
    return action


@pytest.mark.slow
@pytest.mark.usefixtures("short_descents")
def test_more_penalties_are_added_and_fewer_take_nothing_away(tmp_path, monkeypatch):
    assert run_experiment(narrow(tmp_path, "trainer.keep_epochs=[1]")) == "complete"
    first = narrow(tmp_path, "task=analyze", "analysis.l2_path=[0.01,0.1]")
    directory = RunDirectory.of(first)
    assert again(first) == "run"
    before = directory.read_analysis()
    assert again(narrow(tmp_path, "task=analyze")) == "skip"
    solved = []
    minimise = quantities.minimise
    monkeypatch.setattr(
        quantities, "minimise", lambda *a, **k: solved.append(a) or minimise(*a, **k)
    )
    assert again(narrow(tmp_path, "task=analyze", "analysis.l2_path=[1.0]")) == "run"
    assert len(solved) == 2, "(b) and (c) with the new penalty, and nothing else"
    after = directory.read_analysis()
    assert [solve.l2 for solve in after.over_l2] == [0.01, 0.01, 0.1, 0.1, 1.0, 1.0]
    assert after.over_l2[:4] == before.over_l2
    assert after.l2_path == [0.01, 0.1, 1.0]
    for name in ("solves", "points", "descents", "kept"):
        assert getattr(after, name) == getattr(before, name) != []
    assert directory.status() == "complete"
    assert again(narrow(tmp_path, "task=analyze", "trainer.overwrite=true")) == "run"
    assert directory.read_analysis().over_l2 == [], "as it was asked to start afresh"


@pytest.mark.slow
@pytest.mark.usefixtures("short_descents")
def test_an_interruption_at_one_kept_epoch_loses_none_of_the_others(tmp_path):
    """What was known of later epochs was out of the file until their turn came."""
    config, directory = analysed(tmp_path, "trainer.keep_epochs=[0,1]")
    whole = directory.read_analysis()
    lacking = dataclasses.replace(whole, kept=whole.kept[1:])
    directory.write_analysis(lacking)  # as where epoch 0 was not kept before
    said = []
    stops = {"should_stop": lambda: any("epoch 0: " in text for text in said)}
    states = {"report": lambda now: said.append(now.get("state", ""))}
    assert run_experiment(config, **stops, **states) == "interrupted"
    first, second = directory.read_analysis().kept
    assert (first.epoch, len(first.solves)) == (0, 1)
    assert second == whole.kept[1]
    assert run_experiment(config) == "complete"
    assert [kept.epoch for kept in directory.read_analysis().kept] == [0, 1]
    assert all(kept.solves for kept in directory.read_analysis().kept)


@pytest.mark.slow
@pytest.mark.usefixtures("short_descents")
def test_epochs_that_a_complete_run_did_not_keep_are_named(tmp_path, capsys, caplog):
    assert run_experiment(narrow(tmp_path)) == "complete"
    keeps = ("trainer.keep_epochs=[0,2]", "analysis.train=true")
    for words in ((), ("task=analyze",)):
        dry = narrow(tmp_path, *keeps, *words, "sweep.dry_run=true")
        assert run_single(dry) == 0
        said = capsys.readouterr()
        assert "single_stage/resnest seed=0 has no weights of epochs [0, 2]: they were" in said.err
        assert "task=train trainer.overwrite=true" in said.err
    assert run_experiment(narrow(tmp_path, *keeps, "task=analyze")) == "complete"
    assert "no weights of epochs [0, 2] were kept" in caplog.text
    afresh = narrow(tmp_path, *keeps, "trainer.overwrite=true", "sweep.dry_run=true")
    assert run_single(afresh) == 0
    assert "has no weights" not in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [("forgetting", 8 * 4), ("forgetting_conv", 5 * 2 * 3)])
def test_the_experiments_on_forgetting_plan_their_grids(tmp_path, name, count):
    words = (f"experiment={name}", "dataset=digits", "sweep.dry_run=true", "devices.slots=1")
    done = run_command("-m", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{count} to run, 0 to resume, 0 to skip" in done.stdout
    assert done.stderr == ""


@pytest.mark.slow
@pytest.mark.usefixtures("short_descents")
@pytest.mark.parametrize(
    "words",
    [
        ("experiment=forgetting", "arch.width=12"),
        ("experiment=forgetting_conv", "dataset=digits", "variant=bn_resnest", "arch.blocks=[1,2]",
         "arch.widths=[4,10]"),
    ],
)  # fmt: skip
def test_a_small_run_of_each_experiment_on_forgetting_shows_what_training_forgets(tmp_path, words):
    small = ("dataset.train_limit=300", "dataset.test_limit=60", "trainer.epochs=2", "seed=0")
    config = make_config(*words, *small, "trainer.keep_epochs=[0,1]", f"runs_dir={tmp_path}")
    assert config.task == "analyze"
    assert config.analysis.train
    assert run_experiment(dataclasses.replace(config, task="train")) == "complete"
    assert run_experiment(config) == "complete"
    analysis = RunDirectory.of(config).read_analysis()
    assert [kept.epoch for kept in analysis.kept] == [0, 1]
    for one in (analysis, *analysis.kept):
        summary = one.summary()
        assert not summary["crowded"]
        assert 0 < summary["rho"] < 1.5
        assert summary["eps"] > -summary["eps_error"]
        assert summary["slack"] > 0
    assert [place.place for place in analysis.points] == ["trained", "saddle", "optimum"]
    assert [solve.l2 for solve in analysis.over_l2[::2]] == config.analysis.l2_path


@pytest.mark.usefixtures("short_descents")
def test_epochs_start_with_the_network_before_its_first_step(tmp_path):
    directory = analysed(tmp_path, "trainer.keep_epochs=[0,2]")[1]
    assert directory.analysed.epochs_not_kept([0, 2]) == []
    untrained, last = directory.read_analysis().kept
    assert (untrained.epoch, last.epoch) == (0, 2)
    assert untrained.summary()["trained"] > last.summary()["trained"]
    still = narrow(tmp_path, "optimizer.lr=1e-12")  # which hardly leaves its first weights
    assert run_experiment(still) == "complete"
    expected = read_torch(RunDirectory.of(still).weights_file)
    kept = read_torch(directory.analysed.kept_weights_file(0))
    assert all(torch.allclose(kept[name], expected[name], atol=1e-8) for name in expected)


@pytest.mark.long
def test_an_interrupted_analysis_goes_on_and_trains_first_where_asked(tmp_path):
    trains = (*ANALYZE, "variant=resnest", "analysis.train=true", "analysis.l2_path=[0.01]")
    trains += ("trainer.epochs=2", "trainer.keep_epochs=[1]")
    assert run_command(*trains, cwd=tmp_path).returncode == 0
    (run,) = find_runs(tmp_path / "runs")
    file, record = run.analysis.analysis_file, run.analysis.record_file
    whole = json.loads(file.read_text())
    (kept,) = whole["kept"]
    assert kept["epoch"] == 1
    assert kept["weights_sha256"] != whole["weights_sha256"]
    assert {solve["quantity"] for solve in kept["solves"]} == {
        "trained", "prefix", "last_block", "last_maps",
    }  # fmt: skip
    assert [solve["l2"] for solve in whole["over_l2"]] == [0.01, 0.01]
    assert whole["points"][0]["place"] == "trained"
    tables = run_command("--analysis", cwd=tmp_path, script="aggregate.py").stdout
    assert "the gap over epochs" in tables
    assert "the gap over penalties" in tables
    part = whole | {"solves": whole["solves"][:2], "kept": []}
    file.write_text(json.dumps(part))
    record.write_text(json.dumps(json.loads(record.read_text()) | {"status": "interrupted"}))
    assert run_command(*trains, cwd=tmp_path).returncode == 0
    solves = json.loads(file.read_text())["solves"]
    assert solves[:2] == part["solves"]
    assert len(solves) == len(whole["solves"])
    assert solves[-1]["value"] == pytest.approx(whole["solves"][-1]["value"], abs=1e-3)
    again = json.loads(file.read_text())
    assert again["kept"] == [kept]
    assert again["points"] == whole["points"], "what is done is not done again"
    file.write_text(json.dumps({k: v for k, v in whole.items() if k != "method"}))
    record.write_text(json.dumps(json.loads(record.read_text()) | {"status": "complete"}))
    plan = run_command(*trains, "sweep.dry_run=true", cwd=tmp_path).stdout
    assert "1 to run" in plan, "an analysis of an earlier method is made again"


@pytest.mark.long
def test_an_analysis_keeps_to_the_memory_that_its_job_was_given(tmp_path):
    trains = (*ANALYZE, "variant=resnest", "analysis.train=true")
    done = run_command(*trains, cwd=tmp_path, environment={"SLURM_MEM_PER_NODE": "1200"})
    assert done.returncode == 0, done.stderr
    (run,) = find_runs(tmp_path / "runs")
    assert "the job gave this run 1.3 GB of memory" in run.analysis.log_file.read_text()
    assert run.analysis.read_config().analysis.memory_gb == pytest.approx(0.258, abs=1e-3)


@pytest.mark.long
def test_given_weights_are_analysed_on_whatever_images_they_were_evaluated_on(tmp_path):
    assert run_command(*SMALL, "variant=resnest", cwd=tmp_path).returncode == 0
    (run,) = find_runs(tmp_path / "runs")
    images = np.random.default_rng(0).integers(0, 255, (60, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(60) % 10
    parts = {"train_images": images, "train_labels": labels}
    parts |= {"test_images": images[:20], "test_labels": labels[:20]}
    np.savez(tmp_path / "noise.npz", **parts)
    given = (f'weights="{run.weights_file}"', "dataset=images", "dataset.name=noise")
    given += ("dataset.root=noise.npz", "dataset.num_classes=10", "variant=resnest")
    plain = tuple(word for word in SMALL if not word.startswith("dataset"))
    done = run_command(*plain, *given, "task=analyze", cwd=tmp_path)
    assert done.returncode == 2
    assert "expected a complete run, but there is no such run; first task=evaluate" in done.stderr
    assert run_command(*plain, *given, "task=evaluate", cwd=tmp_path).returncode == 0
    done = run_command(*plain, *given, "task=analyze", cwd=tmp_path)
    assert "of given weights, training risk" in done.stdout, done.stderr
    (analysed,) = (run for run in find_runs(tmp_path / "runs") if run.analysis.read_analysis())
    assert analysed.read_record().dataset == "noise"
    (tmp_path / "noise.npz").unlink()
    again = (*given, "task=analyze", "analysis.l2=0.01")
    done = run_command(*plain, *again, cwd=tmp_path)
    assert done.returncode == 2
    assert "dataset.root=noise.npz: expected a folder with a sub-folder for each" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert analysed.analysis.read_analysis().l2 == 5e-4, "what is there is kept"


@pytest.mark.long
def test_a_small_width_test_closes_the_gap_where_theory_says_so(tmp_path):
    grid = ("experiment=width", "arch.width=12,109,112", "seed=0", "trainer.epochs=2")
    done = run_command("-m", *grid, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = {}
    for run in find_runs(tmp_path / "runs"):
        analysis = run.analysis.read_analysis()
        found[analysis.width] = analysis.summary() | {"rank": analysis.smallest_singular_value}
    assert found[12]["eps"] > 100 * found[12]["eps_error"]
    assert found[12]["rank"] == 0
    assert found[112]["rank"] > 1e-6
    for width in (109, 112):  # three of the 112 features before the last block depend on others
        assert abs(found[width]["eps"]) <= found[width]["eps_error"] < 1e-5
        assert found[width]["squared_eps"] == pytest.approx(0, abs=1e-9)


@pytest.mark.slow
def test_what_cannot_be_analysed_is_one_line_before_anything_starts(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def net(num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(3072, num_classes))\n"
    )
    (tmp_path / "own" / "arch").mkdir(parents=True)
    (tmp_path / "own" / "arch" / "mine.yaml").write_text("name: mine\n_target_: mine.net\n")
    for overrides, said in (
        ((), "expected a complete run, but there is no such run"),
        (("analysis.l2=0",), "analysis.l2=0"),
        (("analysis.l2_path=[1e-3,-1]",), "analysis.l2_path=[0.001, -1.0]"),
        (("weights=nowhere.pt",), "there is no file nowhere.pt"),
        (("weights=some.pt", "analysis.train=true"), "analysis.train=True: expected false"),
    ):
        done = run_command(*ANALYZE, *overrides, cwd=tmp_path)
        assert done.returncode == 2
        assert said in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()
    plain = tuple(word for word in ANALYZE if not word.startswith("arch"))
    own = ("--config-dir=own", "arch=mine", "analysis.train=true")
    done = run_command(*own, *plain, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "arch: expected a network whose features are known, not Sequential" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not any(tmp_path.rglob("record.json"))
    assert run_command(*SMALL, cwd=tmp_path).returncode == 0
    found = run_command("--analysis", cwd=tmp_path, script="aggregate.py")
    assert found.returncode == 2
    assert "--analysis: no run was analysed" in found.stderr
