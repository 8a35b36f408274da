"""W&B's offline files, read back: records of its protocol in the log format of LevelDB."""

import json
import struct

import pytest
from curves import EPOCHS, Training, measured

pytest.importorskip("wandb", reason="needs resnests[wandb]")

from wandb.proto.wandb_internal_pb2 import Record

from resnests.trackers.wandb import WandB


@pytest.fixture
def tracker(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    return lambda: WandB("resnests", None, "offline", str(tmp_path / "wb"))


def read(folder) -> list[Record]:
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    data, place, records, whole = file.read_bytes(), 7, [], b""
    assert data.startswith(b":W&B")
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:  # of a block; what is too short for a header is padding
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", data[place : place + 7])
        whole += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # full, or the last part
            records.append(Record.FromString(whole))
            whole = b""
    return records


def items(entries) -> dict:
    return {e.key or "/".join(e.nested_key): json.loads(e.value_json) for e in entries}


@pytest.mark.slow
def test_offline_files_hold_a_resumed_run_once_and_whole(tmp_path, tracker):
    training = Training(tmp_path / "runs")
    training.echo(tracker(), 1, 2, end="interrupted")
    training.echo(tracker(), 2, 3, EPOCHS, end="complete")
    records = read(tmp_path / "wb")
    rows = [items(r.history.item) for r in records if r.WhichOneof("record_type") == "history"]
    for name in ("train_loss", "test_accuracy", "lr"):
        found = [(row["_step"], row[name]) for row in rows if name in row]
        assert found == [(epoch, pytest.approx(v)) for epoch, v in measured(name).items()]
    (run, *_) = [r.run for r in records if r.WhichOneof("record_type") == "run"]
    assert run.run_group.startswith("cifar10/resnet20/standard/")
    assert run.display_name == f"{run.run_group}/seed=0"
    assert "seed=0" in run.tags
    config = {e.key: json.loads(e.value_json) for e in run.config.update}
    assert config["optimizer.lr"] == 0.1
    summary = {}
    for record in records:
        summary |= items(record.summary.update)
    assert summary["final/test_accuracy"] == 90.0
    assert summary["status"] == "complete"
    assert summary["figures/curves"]["_type"] == "image-file"
