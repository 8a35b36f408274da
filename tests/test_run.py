"""run.py as a user has it: exit statuses, messages, files."""

import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys

import pytest
from helpers import REPOSITORY, TINY, history, hold_all_cores, make_config, run_command, until

from resnests.runs.directory import RunDirectory, find_runs
from resnests.runs.record import METRICS, Provenance, Record


def only_run(root):
    (run,) = find_runs(root / "runs")
    return run


@pytest.mark.slow
def test_help_is_written_for_a_person_and_imports_no_torch(tmp_path):
    done = run_command("--help", cwd=tmp_path)
    assert done.returncode == 0
    for word in (
        "python run.py -m experiment=paper",
        "variant: a_resnest, bn_resnest, densenest, resnest, standard",
        "seed=0,1,2",
    ):
        assert word in done.stdout
    command = [sys.executable, "-X", "importtime", str(REPOSITORY / "run.py"), "--help"]
    imported = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=True
    ).stderr
    assert "hydra" in imported
    assert " torch\n" not in imported


@pytest.mark.slow
def test_one_run_and_the_same_command_again(tmp_path):
    first = run_command(*TINY, "seed=3", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert [
        line.split(":")[0] for line in first.stdout.splitlines() if line.startswith("epoch")
    ] == [
        "epoch 1/2",
        "epoch 2/2",
    ]
    run = only_run(tmp_path)
    assert run.read_record().status == "complete"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]
    stamp = run.record_file.stat().st_mtime_ns
    second = run_command(*TINY, "seed=3", cwd=tmp_path)
    assert second.returncode == 0
    assert "complete already" in second.stdout
    assert run.record_file.stat().st_mtime_ns == stamp
    third = run_command(*TINY, "seed=3", "trainer.overwrite=true", cwd=tmp_path)
    assert third.returncode == 0
    assert run.record_file.stat().st_mtime_ns > stamp


@pytest.mark.slow
def test_a_runs_configuration_runs_again_as_it_is(tmp_path):
    assert (
        run_command(*TINY, "variant=resnest", "optimizer=sgd_cosine", cwd=tmp_path).returncode == 0
    )
    run = only_run(tmp_path)
    place = (f"--config-path={run.path}", "--config-name=config")
    again = run_command(*place, cwd=tmp_path)
    assert "complete already" in again.stdout, again.stderr
    elsewhere = run_command(*place, "runs_dir=other", cwd=tmp_path)
    assert elsewhere.returncode == 0, elsewhere.stderr
    (copy,) = find_runs(tmp_path / "other")
    assert copy.path.parts[-5:] == run.path.parts[-5:]
    assert history(copy.path) == history(run.path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["arch=resnet21"], "Could not find 'arch/resnet21'"),
        (["variant=foo"], "Could not find 'variant/foo'"),
        (["dataset=imagenet"], "Could not find 'dataset/imagenet'"),
        (["trainer.epoch=3"], "Key 'epoch' not in 'Trainer' (did you mean trainer.epochs?)"),
        (["cluster.tmie=4h"], "Key 'tmie' not in 'Cluster' (did you mean cluster.time?)"),
        (["optimizer.rate=4"], "To append to your config use +optimizer.rate=4"),
        (["trainer.epochs=many"], "Value 'many' of type 'str' could not be converted to Integer"),
        (["trainer.epochs=1.5"], "Value '1.5' of type 'float' could not be converted to Integer"),
        (["optimizer.lr=fast"], "Value 'fast' of type 'str' could not be converted to Float"),
        (["seed=one"], "could not be converted to Integer"),
        (["trainer.epochs=0"], "error: trainer.epochs=0: expected at least 1"),
        (["seed=-1"], "error: seed=-1: expected"),
        (
            ["trainer.precision=fp8"],
            "error: trainer.precision=fp8: expected one of fp32, tf32, bf16",
        ),
        (
            ["trainer.device=gpu"],
            "error: trainer.device=gpu: expected auto, cpu, cuda, cuda:N or mps",
        ),
        (["trainer.device='cuda:99'"], "error: trainer.device=cuda:99: expected"),
        (["-m", "seed=0,1,-5"], "error: seed=-5: expected"),
        (["-m", "trainer.precision=fp32,fp8"], "error: trainer.precision=fp8"),
        (["-m", "devices.slots=1,2"], "expected one value for the whole sweep"),
        (
            ["-m", "trainer.compile=true,false"],
            "error: trainer.compile=True,False: expected one value",
        ),
        (["-m", "dataset.root=a,b"], "error: dataset.root=a,b: expected one value"),
        (["-m", "experiment=demo,paper"], "error: experiment=demo,paper: expected one experiment"),
        (["-m", "runs_dir='${hydra:job.num}'"], "error: runs_dir: "),
        (["-m", "hydra/sweeper=basic"], "error: hydra/sweeper=basic: expected grid"),
        (
            ["-m", "hydra/sweeper=optuna"],
            "to search, python run.py -m experiment=tune",
        ),
        (["-m", "variant=standard,foo"], "Could not find 'variant/foo'"),
        (["-m", "trainer.epochs=1,x"], "Value 'x' of type 'str' could not be converted to Integer"),
    ],
)
def test_bad_input_is_named_before_anything_happens(tmp_path, arguments, said):
    multirun, values = (["-m"], arguments[1:]) if arguments[0] == "-m" else ([], arguments)
    done = run_command(*multirun, *TINY, *values, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert not list(find_runs(tmp_path))
    assert not any(tmp_path.rglob("seed=*"))


@pytest.mark.slow
def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    done = run_command(*TINY, "runs_dir=file/runs", cwd=tmp_path)
    assert done.returncode == 2
    assert "error: runs_dir=file/runs: expected a directory that can be written" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_missing_images_stop_a_sweep_before_its_first_run(tmp_path):
    done = run_command("-m", "dataset=cifar10", "dataset.download=false", "seed=0,1", cwd=tmp_path)
    assert done.returncode == 2
    assert "cifar-10-python.tar.gz (MD5 c58f30108f718f92721af3b95e74349a)" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not any(tmp_path.rglob("seed=*"))


@pytest.mark.slow
def test_dry_run_tells_and_starts_nothing(tmp_path):
    assert run_command(*TINY, cwd=tmp_path).returncode == 0
    done = run_command("-m", *TINY, "seed=0,1", "sweep.dry_run=true", cwd=tmp_path)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0].startswith("skip    digits/tiny/standard seed=0")
    assert lines[1].startswith("run     digits/tiny/standard seed=1")
    assert lines[2].startswith("1 to run, 0 to resume, 1 to skip")
    assert len(list(find_runs(tmp_path))) == 1


@pytest.mark.slow
def test_a_dry_run_writes_nothing(tmp_path):
    done = run_command("-m", *TINY, "runs_dir=a/b", "sweep.dry_run=true", cwd=tmp_path)
    assert done.returncode == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    "sweep", [(), ("-m", "seed=0,1"), ("-m", "seed=0,1", "hydra/launcher=basic")]
)
def test_a_place_that_is_made_up_on_the_way_is_the_same_for_all(tmp_path, sweep):
    """The clock differs, and so do the jobs of Hydra, between the sweep and its jobs."""
    place = "runs_dir='${now:%S%f}/${hydra:job.name}/${hydra:job.override_dirname}'"
    done = run_command(
        *sweep,
        *TINY,
        "hydra.job.config.override_dirname.exclude_keys=[runs_dir]",
        place,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert len({run.path.parents[4] for run in find_runs(tmp_path)}) == 1


CALLBACK = """
from hydra.experimental.callback import Callback

class Notes(Callback):
    def note(self, line):
        with open("notes", "a") as file:
            print(line, file=file)

    def on_run_end(self, config, **kwargs):
        self.note("run over")

    def on_multirun_end(self, config, **kwargs):
        self.note("sweep over")

    def on_job_end(self, config, job_return, **kwargs):
        self.note(f"job over: {job_return.return_value}")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "status", "notes"),
    [
        (["seed=0"], 0, ["job over: complete", "run over"]),
        (["dataset.num_classes=3"], 1, ["job over: failed", "run over"]),
        (["trainer.epochs=0"], 2, ["job over: None", "run over"]),
        (["-m", "seed=0,1"], 0, ["job over: complete", "job over: complete", "sweep over"]),
        (["-m", "optimizer.lr=1e30"], 1, ["job over: diverged", "sweep over"]),
        (["-m", "seed=0,-1"], 2, ["sweep over"]),
    ],
)
def test_hydras_callbacks_are_called_and_the_exit_status_is_ours(
    tmp_path, arguments, status, notes
):
    (tmp_path / "notes_of_mine.py").write_text(CALLBACK)
    (tmp_path / "hydra" / "callbacks").mkdir(parents=True)
    (tmp_path / "hydra" / "callbacks" / "mine.yaml").write_text(
        "mine: {_target_: notes_of_mine.Notes}"
    )
    done = run_command(
        *arguments[:-1],
        f"--config-dir={tmp_path}",
        "hydra/callbacks=mine",
        *TINY,
        arguments[-1],
        cwd=tmp_path,
        environment={"PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == status, done.stderr
    assert (tmp_path / "notes").read_text().splitlines() == notes


LONG = (*TINY, "trainer.epochs=40")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Return the directory of a run of LONG."""
    root = tmp_path_factory.mktemp("whole")
    assert run_command(*LONG, cwd=root).returncode == 0
    return only_run(root)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP])
def test_a_signal_leaves_a_run_that_resumes_to_the_same_bits(tmp_path, number, uninterrupted):
    command = [sys.executable, str(REPOSITORY / "run.py"), *LONG]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    until(lambda: any(len(run.history_rows()) > 2 for run in find_runs(tmp_path)))
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "interrupted: digits/tiny/standard seed=0" in errors
    run = only_run(tmp_path)
    assert run.read_record().status == "interrupted"
    assert not run.is_locked()
    done = run_command(*LONG, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resuming" in run.log_file.read_text()
    assert history(run.path) == history(uninterrupted.path)


@pytest.mark.slow
def test_a_device_that_is_taken_is_not_waited_for_when_asked(tmp_path):
    held = hold_all_cores()
    done = run_command(*TINY, "trainer.device=cpu", "devices.wait=false", cwd=tmp_path)
    held.release()
    assert done.returncode == 1
    assert f"by process {os.getpid()}" in done.stderr
    assert "somebody else's run" in done.stderr
    assert not any(tmp_path.rglob("seed=*"))


@pytest.mark.slow
def test_the_record_is_json_that_other_tools_read(tmp_path):
    assert run_command(*TINY, cwd=tmp_path).returncode == 0
    record = json.loads(only_run(tmp_path).record_file.read_text())
    assert record["provenance"]["command"].endswith(" ".join(TINY))


@pytest.mark.slow
def test_windows_is_refused_with_one_line(tmp_path):
    """The modules that only Unix has are missing, as they are there."""
    program = """
import platform, sys
platform.system = lambda: "Windows"
sys.modules["resource"] = sys.modules["resnests.sweep.stop"] = None
from resnests.run import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", program, *TINY],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    assert done.returncode == 2
    assert done.stderr == "error: resnests trains on Linux and macOS; on Windows under WSL 2\n"


PLAN = ("-m", "seed=range(300)", "sweep.dry_run=true")


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("run.py", "--help"), ("run.py", *PLAN)])
def test_output_that_nobody_reads_is_no_traceback(tmp_path, arguments):
    command = [sys.executable, str(REPOSITORY / arguments[0]), *arguments[1:]]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, cwd=tmp_path, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        "run.py --help",
        "run.py sweep.dry_run=true",
        "aggregate.py none",
        f"run.py -m {shlex.join(TINY)}",
    ],
)
def test_closed_output_changes_no_exit_status(tmp_path, arguments):
    command = f'"{sys.executable}" "{REPOSITORY}"/{arguments} >&-'
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert done.returncode == (2 if "none" in arguments else 0), done.stderr


@pytest.mark.slow
def test_weights_that_were_deleted_are_named_where_they_are_analysed(tmp_path):
    config = make_config(*TINY, f"runs_dir={tmp_path}")
    run = RunDirectory.of(config)
    run.write_config(config)
    record = Record.of(config, Provenance())
    measured = dict.fromkeys(("parameters", *METRICS), 1)
    run.write_record(dataclasses.replace(record, status="complete", **measured))
    analysis = dataclasses.replace(record, task="analyze", status="complete", **measured)
    run.analysis.path.mkdir()
    run.analysis.write_record(analysis)
    mend = "task=train trainer.overwrite=true trains the run afresh"
    expected = f"expected the weights of the run; {mend}"
    for train in ("false", "true"):
        words = ("task=analyze", f"analysis.train={train}")
        done = run_command(*TINY, f"runs_dir={tmp_path}", *words, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr == f"error: task=analyze: {run.weights_file}: {expected}\n"


SLURM = "defaults: [override /hydra/launcher: submitit_slurm]"
OPTUNA = "defaults: [override /hydra/sweeper: optuna]"
OPTUNA_CLASS = "hydra: {sweeper: {_target_: hydra_plugins.optuna.OptunaSweeper, n_trials: 3}}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "multirun", "said"),
    [
        (SLURM, ["-m"], "1 to run, 0 to resume, 0 to skip; in jobs of slurm"),
        (SLURM, [], "error: hydra/launcher=submitit_slurm: expected -m, "),
        (
            SLURM.replace("submitit_slurm", "my_slurm"),
            [],
            "error: hydra/launcher=my_slurm: expected one of basic, joblib, submitit_local, as ",
        ),
        (OPTUNA, ["-m"], "error: hydra/sweeper=optuna: expected grid, "),
        (
            OPTUNA_CLASS,
            ["-m"],
            "error: hydra.sweeper._target_=hydra_plugins.optuna.OptunaSweeper: ",
        ),
    ],
)
def test_a_launcher_or_sweeper_in_an_experiment_file_holds(tmp_path, content, multirun, said):
    if "launcher" in content:
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    (tmp_path / "hydra" / "launcher").mkdir(parents=True)
    own = "# @package hydra.launcher\ndefaults: [submitit_slurm]\npartition: gpu\n"
    (tmp_path / "hydra" / "launcher" / "my_slurm.yaml").write_text(own)
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{content}\n")
    words = (f"--config-dir={tmp_path}", *TINY, "experiment=mine", "sweep.dry_run=true")
    done = run_command(*multirun, *words, cwd=tmp_path)
    assert done.returncode == (2 if "error" in said else 0), done.stderr
    lines = (done.stderr if "error" in said else done.stdout).splitlines()
    assert lines[-1].startswith(said)
    assert len(lines) == (1 if "error" in said else 2)
