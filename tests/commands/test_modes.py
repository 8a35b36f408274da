"""Test which options each mode of aggregate.py takes."""

import csv
import io
import itertools

import numpy as np
import pytest
import trees

from resnests import aggregate, load_runs
from resnests.commands.options import MODES, OPTIONS, TABLES, mode_of, parser
from resnests.errors import UserError

VALUES = {
    "output": "out/", "format": "latex", "statistic": "median", "compare": "standard",
    "epoch": "best", "metric": "f1", "split": "val", "select": "optimizer.lr", "by": "val_f1",
    "best": "3", "serve": "0", "host": "::1", "to": "wandb",
}  # fmt: skip
METRIC = {"f1": {"_target_": "mine.f1", "unit": "%"}}


def command(mode, *options):
    """Return the command line of a mode with options, and with what --by needs beside it."""
    names = [*dict.fromkeys([*([mode] if mode != TABLES else []), *options])]
    if "by" in options and "select" in MODES[mode]:
        names.append("select")
    values = VALUES | ({"by": "validation"} if mode == "best" else {})
    pairs = ([f"--{name}", values.get(name)] for name in names)
    return list(filter(None, itertools.chain.from_iterable(pairs)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_is_taken_by_a_mode_or_refused(mode, option):
    arguments = parser().parse_intermixed_args(command(mode, option))
    if option == mode or option in MODES[mode]:
        assert mode_of(arguments) == mode
    elif option in MODES and mode in (TABLES, *MODES[option]):
        assert mode_of(arguments) == option
    else:
        with pytest.raises(UserError, match=r"^--\w+ (does not go|goes) with --") as caught:
            mode_of(arguments)
        assert f"--{option}" in str(caught.value)


def test_every_option_has_a_mode():
    assert {*OPTIONS} == {*itertools.chain(*MODES.values()), *MODES} - {TABLES}


def run(root, monkeypatch, capsys, *arguments):
    """Run the command line; return its exit status, what it printed, and what it complained of."""
    monkeypatch.setattr("sys.argv", ["aggregate.py", str(root), *arguments])
    status = 0
    try:
        aggregate.main()
    except SystemExit as ended:
        status = ended.code
    return status, *capsys.readouterr()


@pytest.fixture
def root(tmp_path):
    """Return runs of two rates, of which the accuracy on held-out images prefers one, and its F1
    the other.
    """
    shared = {"metrics": METRIC, "dataset__val_fraction": 0.1, "trainer__epochs": 1}
    for rate, accuracy, f1 in ((0.1, 80, 70), (0.3, 70, 75)):
        for seed in (0, 1):
            rows = trees.history_rows(accuracy, 1, val=True)
            metrics = {"f1": {"test": f1 + seed, "val": f1 + seed}}
            record, optimizer = {"metrics": metrics}, trees.SGD | {"lr": rate}
            values = {"history": rows, "record": record, "optimizer": optimizer, "seed": seed}
            trees.add_run(tmp_path / "runs", accuracy, **values, **shared)
    return tmp_path / "runs"


def test_a_refused_option_is_one_line(root, monkeypatch, capsys):
    status, out, err = run(root, monkeypatch, capsys, "--list", "--metric", "f1")
    assert (status, out) == (2, "")
    assert err == (
        "aggregate.py: --metric does not go with --list, which takes --select, --by and --trials\n"
    )
    assert run(root, monkeypatch, capsys, "--watch")[2] == (
        "aggregate.py: --watch goes with --to or --status\n"
    )


@pytest.mark.parametrize("option", ["statistic", "compare", "together", "metric", "split"])
def test_a_row_a_run_has_no_place_for_what_tables_show(root, monkeypatch, capsys, option):
    words = command(TABLES, option)
    status, out, err = run(root, monkeypatch, capsys, "--format", "csv", *words)
    assert (status, out) == (2, "")
    assert err == (
        f"aggregate.py: --format csv holds one row a run, so --{option} has no place in it\n"
    )


def test_a_matrix_is_no_row_a_run(root, monkeypatch, capsys):
    status, out, err = run(root, monkeypatch, capsys, "--confusion", "--format", "csv")
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert "--output DIR, which has a CSV file for each matrix" in err


@pytest.mark.parametrize(("by", "rate"), [("val_accuracy", 0.1), ("val_f1", 0.3)])
def test_the_directories_of_what_validation_chose_are_listed(root, monkeypatch, capsys, by, rate):
    words = ("--list", "--select", "optimizer.lr", "--by", by)
    _, out, err = run(root, monkeypatch, capsys, *words)
    chosen = load_runs(root, query=f"optimizer.lr={rate}")
    assert out.splitlines() == chosen["path"].tolist()
    assert f"resnet20 standard: {rate} (of 2)" in err


@pytest.mark.parametrize(
    "words",
    [["status=failed"], ["status=fail*,killed"], ["seed=0", "status=failed", "optimizer.lr=0.3"]],
)
@pytest.mark.parametrize(
    "mode",
    [["--list"], ["--list", "--select", "optimizer.lr"], ["--delete"], ["--delete", "--yes"]],
)
def test_no_run_is_an_answer_for_scripts(root, monkeypatch, capsys, mode, words):
    status, out, err = run(root, monkeypatch, capsys, *mode, *words)
    assert (status, out) == (0, "")
    assert err == f"aggregate.py: no run has {' '.join(words)}\n"


@pytest.mark.parametrize(
    "words",
    [["status=faild"], ["seed=0", "optimizer.lr=3"], ["status=failed", "seed=7"], ["sed=1"]],
)
def test_a_word_that_no_run_can_have_is_no_answer(root, monkeypatch, capsys, words):
    status, out, err = run(root, monkeypatch, capsys, "--list", *words)
    assert (status, out) == (2, "")
    assert err.startswith(f"aggregate.py: {words[-1]}: ")
    assert "one of \n" not in err
    assert run(root, monkeypatch, capsys, "--best", "1", "status=failed")[0] == 2


def test_rows_of_what_validation_chose_say_which_value_that_was(root, monkeypatch, capsys):
    words = ("--format", "csv", "--select", "optimizer.lr")
    _, out, err = run(root, monkeypatch, capsys, *words)
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["chosen"] for row in rows] == ["0.1", "0.1"]
    assert "resnet20 standard: 0.1 (of 2)" in err
    assert run(root, monkeypatch, capsys, "--format", "csv")[2] == ""


def test_a_matrix_is_of_what_validation_chose(root, monkeypatch, capsys):
    for path in load_runs(root)["path"]:
        labels = np.array([0, 1])
        np.savez(f"{path}/predictions.npz", label=labels, prediction=labels, logits=np.eye(2))
    _, out, _ = run(root, monkeypatch, capsys, "--confusion", "--select", "optimizer.lr")
    assert out.count("## Confusion") == 1
    assert "resnet20 standard: 0.1 (of 2)" in out
    assert run(root, monkeypatch, capsys, "--confusion")[1].count("## Confusion") == 2


def test_the_best_are_those_of_the_metric(root, monkeypatch, capsys):
    _, out, _ = run(root, monkeypatch, capsys, "--best", "1", "--metric", "f1")
    assert out.startswith("validation f1 76.00%  ")
    _, out, _ = run(root, monkeypatch, capsys, "--best", "1", "--metric", "loss", "--by", "test")
    assert out.startswith("test loss ")
    assert out.endswith("chosen on the test set, whose loss therefore flatters these runs\n")
    status, _, err = run(root, monkeypatch, capsys, "--best", "1", "--metric", "f2")
    assert (status, len(err.splitlines())) == (2, 1)
    assert "--metric f2 --split val: no complete run has it" in err


@pytest.mark.parametrize(("option", "value"), [("--split", "train"), ("--best", "x")])
def test_what_an_option_cannot_be_is_one_line(capsys, option, value):
    with pytest.raises(SystemExit) as ended:
        parser().parse_intermixed_args([option, value])
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.count("\n") == 1
    assert f"argument {option}: invalid" in said


@pytest.mark.parametrize("option", ["--select", "--metric", "--serve"])
def test_an_option_of_one_value_is_not_given_twice(capsys, option):
    with pytest.raises(SystemExit) as ended:
        parser().parse_intermixed_args([option, "1", "arch=resnet20", option, "2"])
    assert ended.value.code == 2
    assert f"{option} was given twice" in capsys.readouterr().err
    taken = parser().parse_intermixed_args(["--to", "wandb", "--to", "mlflow"])
    assert taken.to == ["wandb", "mlflow"]
