"""aggregate.py --list, --show, --best, and the words that say which runs are meant."""

import os

import pandas as pd
import pytest
import trees
from helpers import run_command

from resnests import load_runs
from resnests.commands.runs import delete_runs, print_best, print_run
from resnests.errors import UserError
from resnests.results.select import select, split_values
from resnests.runs.analysis import Analysis, Solve
from resnests.runs.lock import flocked
from resnests.sharing.card import card


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("work") / "runs"
    for arch in ("resnet20", "resnet8"):
        for variant in ("standard", "resnest"):
            for seed in (0, 1):
                history = trees.history_rows(80 + 10 * seed, 5, val=True)
                trees.add_run(
                    root, 90 - seed, arch=arch, variant=variant, seed=seed, history=history,
                    trainer__epochs=5, dataset__val_fraction=0.1,
                )  # fmt: skip
    failed = trees.add_run(root, status="failed", seed=7, record={"error": "ValueError: no"})
    failed.log_file.write_text("first\n" * 20 + "Traceback\nValueError: no\n")
    return root


@pytest.mark.slow
@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("", 9),
        ("arch=resnet20", 5),
        ("arch=resnet*", 9),
        ("arch=resnet?", 4),
        ("arch=resnet20 variant=resnest", 2),
        ("seed=0,1", 8),
        ("seed=0,7 status=complete", 4),
        ("optimizer.lr=0.10", 5),
        ("optimizer.lr=1e-2,0.1", 9),
        ("arch.blocks=[3,3,3]", 5),
        ("arch.blocks=[1,1,1],[3,3,3]", 9),
        ("weights=null", 9),
        ("trainer.label_smoothing=0", 9),
        ("optimizer.nesterov=true", 9),
        ("status=failed", 1),
        ("optimizer=sgd", 9),
        ("optimizer=adamw,sgd pipeline=tensor arch.name=resnet8", 4),
    ],
)
def test_words_choose_runs_as_they_are_typed(root, query, count):
    assert len(load_runs(root, query=query)) == count
    assert len(load_runs(root, query=query.split())) == count


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("arhc=resnet20", "arhc=resnet20: expected a key that the runs have; did you mean arch?"),
        ("arch=vgg", "arch=vgg: no run has it; expected one of resnet20, resnet8"),
        ("arch", "arch: expected key=value"),
        ("arch=", "arch=: expected key=value"),
    ],
)
def test_a_word_that_fits_nothing_says_what_would(root, word, message):
    with pytest.raises(UserError) as error:
        select(load_runs(root), [word])
    assert str(error.value).startswith(message)


def test_commas_within_brackets_are_part_of_a_value():
    assert split_values("a,[1,2],{x:1,y:2},b*") == ["a", "[1,2]", "{x:1,y:2}", "b*"]
    nested = "[{_target_:crop,size:[1,2]},{_target_:flip}]"
    assert split_values(f"[],{nested},[[1,2],[3,4]]") == ["[]", nested, "[[1,2],[3,4]]"]
    assert split_values("a[,b,") == ["a[", "b"]


def test_recipes_that_look_like_numbers_are_told_apart():
    runs = pd.DataFrame({"recipe": ["1234e567", "9876e543", "00001000"], "seed": [0, 1, 2]})
    for word, seeds in (("1234e567", [0]), ("1234e567,*1000", [0, 2]), ("0000*", [2])):
        assert list(select(runs, [f"recipe={word}"])["seed"]) == seeds
    with pytest.raises(UserError, match="no run has it"):
        select(runs, ["recipe=1000"])
    assert list(select(runs, ["seed=1.0"])["seed"]) == [1]


def test_a_list_of_parts_chooses_the_runs_that_have_it(tmp_path):
    parts = [{"_target_": "x.Crop", "size": [1, 2]}, {"_target_": "x.Flip"}]
    trees.add_run(tmp_path, pipeline__augment=parts)
    trees.add_run(tmp_path)
    word = "pipeline.augment=[{_target_:x.Crop,size:[1,2]},{_target_:x.Flip}]"
    assert len(load_runs(tmp_path)) == 2
    assert len(load_runs(tmp_path, query=word)) == 1


def aggregate(root, *arguments):
    return run_command(*arguments, script="aggregate.py", cwd=root.parent)


@pytest.mark.slow
def test_the_same_words_serve_lists_tables_and_the_status(root):
    words = ("arch=resnet8", "seed=0,1")
    done = aggregate(root, "--list", *words, "variant=standard")
    listed = done.stdout.splitlines()
    assert [line.rpartition("/")[2] for line in listed] == ["seed=0", "seed=1"]
    assert all(os.path.isdir(root.parent / line) for line in listed)
    table = aggregate(root, *words, "--statistic", "median", "runs").stdout
    assert "ResNet-8" in table
    assert "ResNet-20" not in table
    assert aggregate(root, "--status", *words).stdout.startswith("4 of 4 done\n")
    done = aggregate(root, "--list", "--show")
    assert (done.returncode, done.stdout) == (2, "")


def test_one_run_is_shown_whole(root, capsys):
    runs = load_runs(root)
    print_run(select(runs, ["status=failed"]))
    shown = capsys.readouterr().out
    assert "failed: ValueError: no" in shown
    assert "trainer.epochs=default" in shown.split("differs")[1].splitlines()[0]
    assert shown.endswith("first\n" * 8 + "Traceback\nValueError: no\n")
    with pytest.raises(UserError, match="expected words that fit one run, not 9"):
        print_run(runs)


def test_a_run_is_shown_with_metrics_of_its_own(tmp_path, capsys):
    metrics = {"f1": {"test": 81.5, "val": 80.25}, "ema_accuracy": {"test": 91.0, "val": None}}
    trees.add_run(tmp_path, record={"metrics": metrics})
    print_run(load_runs(tmp_path))
    found = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert [found[name] for name in ("test_f1", "val_f1", "test_ema_accuracy")] == [
        "81.5000", "80.2500", "91.0000",
    ]  # fmt: skip
    assert found["test_accuracy"] == "90.0000"
    assert found["provenance.started"] == "2025-01-01 00:00:00 UTC"
    assert "val_ema_accuracy" not in found


def test_a_run_that_was_analysed_is_shown_with_what_that_found(tmp_path, capsys):
    run = trees.add_run(tmp_path)
    run.analysis.path.mkdir()
    solve = Solve("trained", "exact", "last", 8, value=0.123456, train_loss=0.1)
    run.analysis.write_analysis(Analysis(5e-4, 5e-4, "0" * 64, solves=[solve]))
    print_run(load_runs(tmp_path))
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert shown["analysis.status"] == "killed"
    assert shown["analysis.trained"] == "0.1235"
    assert "analysis.bound" not in shown
    assert shown["all"].endswith(str(run.config_file))


def test_a_run_that_was_not_analysed_has_no_keys_of_an_analysis_among_its_numbers(tmp_path, capsys):
    trees.add_run(tmp_path, 90)
    print_run(load_runs(tmp_path))
    assert "analysis." not in capsys.readouterr().out


def test_what_follows_from_the_epochs_is_not_shown_as_a_key(tmp_path, capsys):
    run = trees.add_run(tmp_path, trainer__epochs=1)
    about = {"files": {}, "mean": 0, "std": 1, "num_classes": 10, "image_size": [8, 8]}
    about |= {"size": None, "classes": None}
    print_run(load_runs(tmp_path))
    for shown in (capsys.readouterr().out, card(run, run.read_record(), about)):
        assert "trainer.epochs" in shown
        assert "milestone_epochs" not in shown


def test_the_best_are_chosen_on_held_out_images_unless_asked(root, capsys):
    runs = load_runs(root)
    print_best(runs, 4, "validation")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert all(line.startswith("validation 91.00%  ") for line in lines)
    assert all(line.endswith("seed=1") for line in lines)
    print_best(runs, 1, "test")
    first, said = capsys.readouterr().out.splitlines()
    assert first.startswith("test 90.00%")
    assert "flatters" in said
    with pytest.raises(UserError, match="no complete run has validation accuracy"):
        print_best(runs.drop(columns="val_accuracy"), 1, "validation")


@pytest.mark.slow
def test_runs_are_deleted_only_when_that_is_sure(tmp_path):
    runs = tmp_path / "runs"
    kept = trees.add_run(runs, 90)
    failed = trees.add_run(runs, status="failed", arch="resnet8")
    words = ("--delete", "status=failed")
    done = aggregate(runs, *words)
    assert done.stdout.splitlines()[0] == f"would delete {failed.path.relative_to(tmp_path)}"
    assert failed.path.exists()
    done = aggregate(runs, *words, "--yes")
    assert (done.returncode, done.stdout) == (0, f"deleted {failed.path.relative_to(tmp_path)}\n")
    assert not (runs / "cifar10" / "resnet8").exists(), "nor an empty folder"
    assert kept.status() == "complete"
    assert aggregate(runs, "--delete", "--yes").returncode == 2, "all of them need words as well"
    assert aggregate(runs, "--yes").returncode == 2


def test_a_run_that_somebody_holds_is_never_deleted(tmp_path, capsys):
    held, analysed, outer, free = (trees.add_run(tmp_path, seed=seed) for seed in range(4))
    analysed.analysis.path.mkdir()
    trees.add_run(outer.path, arch="resnet8")
    runs = load_runs(tmp_path, query="arch=resnet20")
    with held.lock().acquire(blocking=False), analysed.analysis.lock().acquire(blocking=False):
        for sure in (False, True):
            assert delete_runs(runs, sure) == int(sure)
            lines = capsys.readouterr().out.splitlines()
            assert f"left {held.path}, on which a process works" in lines
            assert f"left {analysed.path}, on which a process works" in lines
            assert f"left {outer.path}, which has other runs below it" in lines
    assert [run.path.exists() for run in (held, analysed, outer, free)] == [True, True, True, False]
    assert delete_runs(runs[runs["seed"] < 2], True) == 0
    assert not held.path.exists()
    assert [path.name for path in tmp_path.rglob("*.deleted*")] == []


def test_a_run_that_was_tried_again_meanwhile_is_left(tmp_path, capsys):
    trees.add_run(tmp_path, status="failed")
    trees.add_run(tmp_path, status="failed", seed=1)
    killed = trees.add_run(tmp_path, status="running", seed=2)
    runs = load_runs(tmp_path)
    done = trees.add_run(tmp_path)
    again = trees.add_run(tmp_path, status="failed", seed=1, provenance={"started": 1.8e9})
    assert delete_runs(runs, True) == 1
    said = capsys.readouterr().out.splitlines()
    assert said == [
        f"left {done.path}, which has changed since it was chosen",
        f"left {again.path}, which has changed since it was chosen",
        f"deleted {killed.path}",
    ]
    assert done.status() == "complete"


def test_a_run_that_a_tracker_is_sent_is_left(tmp_path, capsys):
    run = trees.add_run(tmp_path)
    run.sync_file("mlflow").touch()
    runs = load_runs(tmp_path)
    with flocked(run.sync_file("mlflow")):
        for sure in (False, True):
            delete_runs(runs, sure)
            assert f"left {run.path}, on which a process works" in capsys.readouterr().out
    assert delete_runs(runs, True) == 0


def test_what_cannot_be_removed_of_a_run_is_named(tmp_path, capsys, monkeypatch):
    run = trees.add_run(tmp_path)
    aside = run.path.with_name(f".deleted.seed=0.{os.getpid()}")

    def refuse(path):
        raise PermissionError(13, "Permission denied", f"{path}/analysis")

    monkeypatch.setattr("shutil.rmtree", refuse)
    assert delete_runs(load_runs(tmp_path), True) == 1
    assert f"left {run.path}, of which {aside} is left, which" in capsys.readouterr().out


def test_a_link_is_not_followed_to_what_it_leads_to(tmp_path, capsys):
    elsewhere = trees.add_run(tmp_path / "elsewhere")
    link = tmp_path / "runs" / "seed=0"
    link.parent.mkdir()
    link.symlink_to(elsewhere.path)
    assert delete_runs(load_runs(link.parent), True) == 1
    assert "a link" in capsys.readouterr().out
    assert elsewhere.status() == "complete"
