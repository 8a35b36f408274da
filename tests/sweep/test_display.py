"""Test the lines and the live table of a sweep."""

import math
from dataclasses import replace

import pytest
from helpers import tiny

from resnests.runs.analysis import LAST_MAPS, PREFIX, TRAINED, Analysis, Solve
from resnests.runs.directory import RunDirectory
from resnests.runs.history import HISTORY
from resnests.runs.record import METRICS, Provenance, Record
from resnests.sweep.display import Display
from resnests.sweep.plan import Run
from resnests.sweep.scheduler import Job, State

PROGRESS = {
    "state": "training",
    "device": "cpu-0",
    "epoch": 3,
    "epochs": 10,
    "step": 1,
    "steps": 2,
    "loss": 0.5,
    "accuracy": 80.0,
    "images_per_second": 1234.0,
    "seconds_left": 90.0,
}


def runs_of(tmp_path, count: int) -> list[Run]:
    configs = [
        tiny(f"runs_dir={tmp_path}", f"seed={seed}", "trainer.epochs=10") for seed in range(count)
    ]
    return [Run(config, RunDirectory.of(config), index) for index, config in enumerate(configs)]


def shown(display: Display, width: int = 200) -> str:
    """Return the table as a terminal shows it."""
    display.console.width, display.console.soft_wrap = width, False  # as on a terminal
    with display.console.capture() as captured:
        display.console.print(display._table())
    return captured.get()


def started(run: Run, **record) -> None:
    run.directory.write_config(run.config)
    run.directory.write_progress(PROGRESS)
    run.directory.write_record(replace(Record.of(run.config, Provenance()), **record))


def test_the_live_table_shows_counts_and_every_running_run(tmp_path):
    runs = runs_of(tmp_path, 3)
    display = Display(runs, runs)
    display.started -= 1
    started(runs[0])
    display._refresh(display._due())
    text = shown(display)
    assert "0 of 3 done, 1 running, 2 waiting" in text
    assert "digits/tiny/standard seed=0" in text
    for cell in ("cpu-0", "3/10", "0.5000", "80.00%", "1234", "1:30 min"):
        assert cell in text


def test_the_live_table_shows_validation_where_images_were_held_out(tmp_path):
    runs = runs_of(tmp_path, 1)
    display = Display(runs, runs)
    display.started -= 1
    started(runs[0])
    runs[0].directory.write_progress(PROGRESS | {"val_accuracy": 70.0})
    display._refresh(display._due())
    assert "80.00%, validation 70.00%" in shown(display)


def test_runs_go_on_where_lines_cannot_be_written(tmp_path, monkeypatch, capsys):
    runs = runs_of(tmp_path, 1)

    def fail(_line):
        raise OSError(28, "No space left on device")

    display = Display(runs, runs)
    monkeypatch.setattr(display.console, "print", fail)
    display.print("start a")
    display.print("start b")
    assert capsys.readouterr().err == "warning: standard output: No space left on device\n"


def test_plain_lines_tell_start_and_end_of_each_run_of_a_sweep(tmp_path, capsys):
    runs = runs_of(tmp_path, 2)
    display = Display(runs, runs)
    display.started -= 1
    runs[0].directory.write_config(runs[0].config)
    runs[0].directory.write_progress(PROGRESS)
    display._refresh(display._due())
    started(runs[0], status="failed", error="OSError: no disk")
    display._refresh(display._due())
    display._refresh(display._due())
    assert capsys.readouterr().out.splitlines() == [
        "start digits/tiny/standard seed=0 on cpu-0",
        "failed 1/2 digits/tiny/standard seed=0: OSError: no disk",
    ]


def test_counts_never_go_back_where_runs_are_tried_again(tmp_path, capsys):
    runs = runs_of(tmp_path, 2)
    display = Display(runs, runs)
    display.started -= 1
    measured = dict.fromkeys(("parameters", *METRICS), 1)
    for run, status in [(0, "killed"), (1, "failed"), (0, "interrupted"), (1, "failed"), (1, None),
                        (0, None)]:  # fmt: skip
        for now in ({"status": "running"}, {"status": status} if status else None):
            started(runs[run], **(now or measured | {"status": "complete"}))
            display._refresh(display.views)
    lines = capsys.readouterr().out.splitlines()
    ends = [" ".join(line.split()[:2]) for line in lines if not line.startswith("start ")]
    label = "digits/tiny/standard"
    assert ends == [f"killed {label}", "failed 1/2", f"interrupted {label}", "failed 1/2",
                    "complete 1/2", "complete 2/2"]  # fmt: skip


def test_a_dumb_terminal_gets_plain_lines(tmp_path, monkeypatch, capsys):
    """A dumb terminal is a terminal, but cannot draw a table."""
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    runs = runs_of(tmp_path, 2)
    with Display(runs, runs) as display:
        assert display.console.is_terminal
        display.started -= 1
        started(runs[0])
    assert "start digits/tiny/standard seed=0 on cpu-0\n" in capsys.readouterr().out


def test_where_no_device_is_known_none_is_named(tmp_path, capsys):
    runs = runs_of(tmp_path, 2)
    display = Display(runs, runs)
    display.started -= 1
    started(runs[0])
    runs[0].directory.progress_file.unlink(missing_ok=True)
    display._refresh(display._due())
    assert capsys.readouterr().out == "start digits/tiny/standard seed=0\n"


@pytest.mark.parametrize(
    ("validation", "epochs", "said"),
    [(61.5, 10, "validation 61.50% after 10 epochs"), (math.nan, 1, "test 72.25% after 1 epoch")],
)
def test_accuracies_to_choose_by_are_those_of_held_out_images(
    tmp_path, capsys, validation, epochs, said
):
    runs = runs_of(tmp_path, 2)
    display = Display(runs, runs)
    display.started -= 1
    row = dict.fromkeys(HISTORY, 1.0) | {"val_accuracy": validation}
    runs[0].directory.write_config(runs[0].config)
    runs[0].directory.write_history([row])
    measured = dict.fromkeys(("parameters", *METRICS), 1) | {"test_accuracy": 72.25}
    started(runs[0], status="complete", seconds=3.0, epochs=epochs, **measured)
    display._refresh(display._due())
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("complete 1/2 digits/tiny/standard seed=0: ")
    assert f": {said}, 3.0 s" in last


@pytest.mark.parametrize(
    "error",
    [
        "RuntimeError: [/opt/pytorch/x.cc:3] boom",
        "RuntimeError: [enforce fail at alloc_cpu.cpp:127] no memory :boom:",
    ],
)
def test_text_that_is_not_ours_is_shown_as_it_is(tmp_path, capsys, error):
    runs = [replace(run, differs="arch.blocks=[1, 1] [/b]") for run in runs_of(tmp_path, 2)]
    display = Display(runs, runs)
    display.started -= 1
    started(runs[0], status="failed", error=error)
    started(runs[1])
    display._refresh(display._due())
    assert f"arch.blocks=[1, 1] [/b]: {error}\n" in capsys.readouterr().out
    assert "seed=1 arch.blocks=[1, 1] [/b]" in shown(display)


def test_of_many_runs_only_those_are_looked_at_that_can_have_changed(tmp_path):
    """Two of a hundred runs train, and the table has room for a few."""
    config = tiny(f"runs_dir={tmp_path}")
    configs = [replace(config, seed=seed) for seed in range(100)]
    runs = [Run(config, RunDirectory.of(config), index) for index, config in enumerate(configs)]
    display = Display(runs, runs)
    display.started -= 1
    display.update([Job("", [runs[70]], State.RUNNING), Job("", [runs[80]], State.RUNNING)])
    started(runs[70])
    started(runs[80])
    first = display._due()
    display._refresh(first)
    assert {70, 80} <= {view.run.index for view in first}
    assert len(first) < 25
    assert "0 of 100 done, 2 running, 98 waiting" in shown(display)
    display.update([])
    last = display._due()  # how a run ended is seen after its job is gone
    assert {70, 80} <= {view.run.index for view in last}
    assert len(display._due()) == 20
    looked_at = {view.run.index for _ in range(5) for view in display._due()}
    assert looked_at == set(range(100))


@pytest.mark.slow
def test_a_table_is_no_longer_than_a_page(tmp_path):
    runs = runs_of(tmp_path, 6)
    display = Display(runs, runs)
    display.console.height = 8
    display.started -= 1
    for run in runs:
        started(run)
    display._refresh(display._due())
    text = shown(display)
    assert "6 running" in text
    assert "and 2 more" in text
    assert len(text.splitlines()) <= 8


@pytest.mark.slow
def test_of_jobs_on_a_cluster_it_tells_who_waits_for_what_and_which_node_trains(tmp_path, capsys):
    runs = runs_of(tmp_path, 4)
    display = Display(runs, runs)
    display.started -= 1
    queued = [
        Job(f"7_{i}", [runs[i]], reason=reason) for i, reason in ((1, "Priority"), (2, "Priority"))
    ]
    display.update([Job("7_0", [runs[0]], State.RUNNING, node="n3", started=True), *queued])
    started(runs[0])
    display._refresh(display._due())
    text = shown(display)
    assert "1 running, 2 queued (Priority), 1 waiting" in text
    assert "n3 cpu-0" in text
    assert "start digits/tiny/standard seed=0 on n3 cpu-0" in capsys.readouterr().out
    started(runs[0], status="interrupted")
    display._refresh(display._due())
    started(runs[0])
    display._refresh(display._due())
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said] == ["interrupted", "start"]


@pytest.mark.slow
@pytest.mark.parametrize("width", [200, 100, 80, 60, 40])
def test_what_matters_can_be_read_on_a_narrow_terminal_too(tmp_path, width):
    runs = runs_of(tmp_path, 3)
    display = Display(runs, runs)
    display.started -= 1
    for run in runs[:2]:
        started(run)
    display._refresh(display._due())
    text = shown(display, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert text.count("3/10") == 2
    assert text.count("1:30 min") == 2
    for label in ("digits/tiny/standard seed=0", "digits/tiny/standard seed=1"):
        assert label in text
    assert ("0.5000" in text) == (width >= 100)


def test_the_time_left_is_by_epochs_of_the_same_architecture(tmp_path):
    runs = runs_of(tmp_path, 3)
    measured = dict.fromkeys(("parameters", *METRICS), 1)
    long = replace(runs[2].config, trainer=replace(runs[2].config.trainer, epochs=100))
    runs[2] = Run(long, RunDirectory.of(long), 2)
    display = Display(runs, runs)
    display.started -= 1
    started(runs[0], status="complete", seconds=20.0, epochs=10, **measured)
    display._refresh(display._due())
    assert "about 3:40 min left" in shown(display)  # 110 epochs of 2 s


def test_the_time_left_of_a_slow_architecture_is_not_that_of_a_fast_one(tmp_path):
    runs = runs_of(tmp_path, 3)
    measured = dict.fromkeys(("parameters", *METRICS), 1)
    for i in (1, 2):
        slow = replace(runs[i].config, arch=replace(runs[i].config.arch, name="deep"))
        runs[i] = Run(slow, RunDirectory.of(slow), i)
    display = Display(runs, runs)
    display.started -= 1
    started(runs[0], status="complete", seconds=20.0, epochs=10, **measured)
    display._refresh(display._due())
    assert " left" not in shown(display), "it tells nothing of another"
    started(runs[1], status="complete", seconds=600.0, epochs=10, **measured)
    display._refresh(display._due())
    assert "about 10:00 min left" in shown(display)


def test_a_line_cannot_move_the_cursor(tmp_path, capsys):
    runs = runs_of(tmp_path, 2)
    display = Display(runs, runs)
    display.started -= 1
    started(runs[0], status="failed", error="no \x1b[2J\x1b]0;title\x07 sweep")
    display._refresh(display._due())
    assert "\x1b" not in capsys.readouterr().out


def test_the_line_of_an_analysis_prints_no_digit_beyond_its_error(tmp_path):
    """It once ended with ε -0.0000."""
    config = tiny(f"runs_dir={tmp_path}", "task=analyze")
    run = Run(config, RunDirectory.of(config), 0)
    losses = ((TRAINED, 0.3, 0.0), (PREFIX, 0.25, 4e-4), (LAST_MAPS, 0.25 - 1e-9, 2e-9))
    solves = [Solve(what, "exact", "1.1", 9, value, gap) for what, value, gap in losses]
    run.directory.path.mkdir(parents=True)
    run.directory.write_analysis(Analysis(5e-4, 5e-4, "0" * 64, True, solves=solves))
    record = replace(Record.of(config, Provenance()), status="complete", epochs=3, seconds=1.0)
    record = replace(record, test_accuracy=90.0)
    run.directory.write_record(record)
    view = Display([run], [run]).views[0]
    view.record, view.status = record, record.status
    assert view.outcome().startswith(
        "test 90.00% after 3 epochs, training risk 0.3000, bound 0.250, ε 0.000, 1.0 s"
    )
