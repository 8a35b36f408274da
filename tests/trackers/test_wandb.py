"""W&B's offline files, read back: records of its protocol in the log format of LevelDB."""

import json
import struct

import pytest
from curves import EPOCHS, Training, measured

pytest.importorskip("wandb", reason="needs resnests[wandb]")

from wandb.proto.wandb_internal_pb2 import Record

from resnests.trackers.run_sync import RunSync


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


def make_training(folder, monkeypatch, seed) -> Training:
    monkeypatch.setenv("WANDB_CACHE_DIR", str(folder / "cache"))
    settings = {"_target_": "resnests.trackers.wandb.WandB", "project": "resnests"}
    settings |= {"entity": None, "mode": "offline", "folder": str(folder / f"wb{seed}")}
    return Training(folder / "runs", "wandb", settings, seed=seed)


def steps(records, name) -> list[int]:
    rows = [items(r.history.item) for r in records if r.WhichOneof("record_type") == "history"]
    return [row["_step"] for row in rows if name in row]


def items(entries) -> dict:
    return {e.key or "/".join(e.nested_key): json.loads(e.value_json) for e in entries}


@pytest.mark.slow
def test_offline_files_hold_a_resumed_run_once_and_whole(tmp_path, monkeypatch):
    training, other = (make_training(tmp_path, monkeypatch, seed) for seed in (0, 1))
    open_too = RunSync(other.run, "wandb")
    other.reach(1)
    open_too.sync()  # another run of the sweep is open meanwhile
    training.sync(0, end="interrupted")
    training.sync(1, 2, end="interrupted")
    training.sync(2, 3, EPOCHS, end="complete")
    records = read(tmp_path / "wb0")
    other.reach(EPOCHS, "complete")
    open_too.sync()
    assert open_too.is_done
    assert steps(read(tmp_path / "wb1"), "train_loss") == [1, 2, 3, 4]
    found = list((tmp_path / "wb0").glob("wandb/offline-run-*"))
    assert len(found) == 1, "it was interrupted in its first epoch, and is one run"
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
