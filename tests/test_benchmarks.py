"""The benchmark runs to its end and fills its tables. What it measures here, in one step, is
noise.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import initialize_config_dir

from benchmarks import augment, gpu, gpu_parts, gpu_session, subjects
from benchmarks.gpu_report import report
from benchmarks.process import ratio, table
from benchmarks.subjects import Spec

REPOSITORY = Path(__file__).parent.parent


@pytest.mark.long
def test_training_tables_have_every_subject_and_no_missing_ratio():
    options = [
        "--arch",
        "resnet8",
        "--precision",
        "fp32",
        "--threads",
        "1",
        "--rounds",
        "1",
        "--tables",
        "training",
    ]
    command = [sys.executable, "-m", "benchmarks.train_speed", *options, "--dataset", "digits"]
    output = subprocess.run(
        command, cwd=REPOSITORY, check=True, capture_output=True, text=True
    ).stdout
    rows = {
        line.split("|")[1].strip(): line.split("|")[2:-1]
        for line in output.splitlines()
        if line.startswith("|")
    }
    assert {"official", "usual", "ours fp32", "fp32"} <= rows.keys()
    assert rows["official"][3].strip() == rows["usual"][4].strip() == "1.00x"
    assert all(float(cell.strip().rstrip("x")) > 0 for cell in rows["ours fp32"])
    assert float(rows["fp32"][1].strip().rstrip("%")) > 0


def test_after_an_evaluation_a_subject_trains_again():
    subject = subjects.Ours(Spec("ours", "resnet8", dataset="digits"))
    subject.evaluate(1)
    assert not subject.model.training
    subject.train(1)
    assert subject.model.training


@pytest.mark.long
def test_the_gpu_report_has_every_mode(monkeypatch, capsys):
    """With the CPU in the GPU's place: figures mean nothing, but each subject ran and each table
    is full.
    """
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(gpu, "matmul_peak", lambda device, precision: 1e12)
    monkeypatch.setattr(gpu, "SHARED", (1,))
    options = {
        "arch": ["resnet8"],
        "tables": ["training", "concurrency"],
        "device": "cpu",
        "dataset": "digits",
        "root": "data",
        "threads": 1,
        "steps": 1,
        "rounds": 1,
    }
    gpu.report(argparse.Namespace(precision=["bf16"], **options))
    lines = capsys.readouterr().out.splitlines()
    names = [line.split("|")[1].strip() for line in lines if line.startswith("|")]
    assert {f"bf16, {mode}" for mode in gpu.MODES} <= set(names)
    assert "failed" not in "".join(lines)
    assert {"resnet8", "all", "1"} <= set(names)


@pytest.fixture
def session(tmp_path) -> gpu_session.Session:
    return gpu_session.Session(argparse.Namespace(smoke=True, output=tmp_path, minutes=9))


@pytest.mark.slow
def test_a_session_goes_on_after_what_fails_or_hangs(session, tmp_path):
    assert session.python("sound", "-c", "print('fine')")
    assert not session.python("failing", "-c", "import sys; sys.exit('no such card')")
    assert not session.python("hanging", "-c", "import time; time.sleep(60)", limit=0.2)
    session.measure("unknown", arch="nonsense")
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert rows == session.rows
    assert [row.get("code") for row in rows] == [0, 1, -9, None]
    assert [row["tail"][-1:] for row in rows[:3]] == [["fine"], ["no such card"], []]
    assert rows[3]["failed"].startswith("statuses [1]")
    page = report(rows)
    assert "- hanging: status -9" in page
    assert "- unknown: statuses [1]" in page


@pytest.mark.long
def test_a_session_measures_processes_that_begin_together(session):
    gpu_parts.share(session)
    alone, streams, row = session.rows
    assert (alone["count"], alone["streams"]) == (1, 1)
    assert (streams["count"], streams["streams"]) == (1, 2)
    assert streams["images_s"] > 0
    assert (row["count"], row["mode"], row["arch"]) == (2, "whole", "resnet8")
    assert row["images_s"] > 0
    assert "| share: processes | bf16 | whole |" in report(session.rows)


def test_a_session_asks_a_card_for_the_whole_analysis_and_for_what_streams(session, monkeypatch):
    asked = []
    monkeypatch.setattr(session, "python", lambda part, *words, **_: asked.append(words))
    gpu_parts.sweep(session)
    gpu_parts.tests(session)
    (analysis,) = (words for words in asked if "task=analyze" in words)
    wanted = {"variant=resnest,a_resnest", "analysis.train=true", "trainer.keep_epochs=[0,1]"}
    assert wanted <= set(analysis), "a standard network has no exact features"
    assert any({"pipeline.memory_gb=0", "metrics=[f1,ece]"} <= set(words) for words in asked)
    assert {"tests/training", "tests/data"} <= set(asked[-1])


def test_a_session_has_what_the_documents_name():
    named = re.findall(r"--parts ([a-z ]+)", (REPOSITORY / "docs" / "speed.md").read_text())
    assert named
    assert {part for words in named for part in words.split()} <= gpu_parts.PARTS.keys()


def test_ratios_compare_within_a_round():
    assert ratio([10, 100, 30], [5, 50, 10]) == 2


def test_tables_are_markdown():
    assert table(["", "x"], [["a", "1"]]) == "|  | x |\n| --- | ---: |\n| a | 1 |"


def test_flops_of_a_step_are_three_times_those_of_the_forward_pass_less_the_stem():
    # resnet20 forward: 40.8 million multiply-additions an image; the stem needs no gradient of the
    # images.
    assert 3 * 2 * 40.0e6 < gpu.step_flops("resnet20") < 3 * 2 * 41.5e6


@pytest.mark.slow
def test_every_augmentation_makes_batches():
    augment.register()
    with initialize_config_dir(str(augment.conf_dir()), version_base="1.3"):
        for words in augment.AUGMENTS.values():
            batches = augment.batches(augment.composed(*words))
            assert augment.timed(batches, 1) > 0
            images, labels = next(batches)
            assert images.shape == (128, 3, 32, 32)
            assert len(labels) == 128
