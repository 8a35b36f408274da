"""Given weights into the table, and ours out under the official names."""

import json

import pytest
import torch
import trees
from data_images import write_parts
from helpers import TINY, make_config, run_command

from resnests import build_model
from resnests.config.schema import config_dict, config_from
from resnests.data.splits import load
from resnests.errors import UserError
from resnests.models.weights import load_weights, read_torch
from resnests.paper import official_name
from resnests.runs.directory import RunDirectory, find_runs
from resnests.tasks import preflight
from resnests.tasks.experiment import run_experiment

EVALUATE = ("task=evaluate", "dataset=digits", "arch=resnet20")


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["arch=wrn16_8", "variant=a_resnest", "seed=6"], "CIFAR10_AResNEst_WRN_16_8_seed=6"),
        (["arch=resnet110", "dataset=cifar100"], "CIFAR100_Standard_ResNet_110_seed=0"),
        (["arch=wrn40_4", "variant=bn_resnest", "seed=1"], "CIFAR10_BNResNEst_WRN_40_4_seed=1"),
        (["arch=resnet20", "variant=resnest"], "CIFAR10_ResNEst_ResNet_20_seed=0"),
    ],
)
def test_official_folder_names(overrides, name):
    c = make_config(*overrides)
    assert official_name(c.dataset.name, c.arch.name, c.variant.name, c.seed) == name


@pytest.fixture
def official(tmp_path):
    """Return a folder in the official scheme with two seeds of two variants on digits."""
    for variant, label in (("standard", "Standard"), ("a_resnest", "AResNEst")):
        for seed in (0, 1):
            folder = tmp_path / "official" / f"DIGITS_{label}_ResNet_20_seed={seed}"
            folder.mkdir(parents=True)
            torch.manual_seed(seed)
            torch.save(build_model("resnet20", variant).state_dict(), folder / "last_model.pt")
    return tmp_path / "official"


@pytest.mark.slow
def test_a_grid_of_given_weights_leaves_records_marked_as_evaluated(tmp_path, official):
    grid = ("variant=standard,a_resnest", "seed=0,1", f"weights={official}")
    done = run_command("-m", *EVALUATE, *grid, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    records = [run.read_record() for run in find_runs(tmp_path / "runs")]
    assert len(records) == 4
    for record in records:
        assert (record.task, record.status, record.epochs) == ("evaluate", "complete", 0)
        assert record.weights.endswith(f"_ResNet_20_seed={record.seed}/last_model.pt")
        assert record.parameters == {"standard": 272_282, "a_resnest": 238_130}[record.variant]
        assert record.train_accuracy is None
    assert "4 of 4 runs are finished" not in done.stdout
    again = run_command("-m", *EVALUATE, *grid, cwd=tmp_path)
    assert "nothing to do" in again.stdout
    torch.save(
        build_model("resnet20").state_dict(),
        official / "DIGITS_Standard_ResNet_20_seed=1" / "last_model.pt",
    )
    changed = run_command("-m", *EVALUATE, *grid, cwd=tmp_path)
    assert "3 of 4 runs are finished already" in changed.stdout, (
        "other weights in the same file are evaluated anew"
    )


@pytest.mark.slow
def test_trained_evaluated_and_exported_weights_agree(tmp_path):
    assert run_command(*TINY, "seed=2", cwd=tmp_path).returncode == 0
    (trained,) = find_runs(tmp_path / "runs")
    exported = run_command(*TINY, "seed=2", "task=export", "weights=given", cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    path = tmp_path / "given" / "DIGITS_Standard_tiny_seed=2" / "last_model.pt"
    assert (
        torch.load(path, weights_only=True).keys()
        == build_model(((1, 1), (4, 8))).state_dict().keys()
    )
    done = run_command(*TINY, "seed=2", "task=evaluate", "weights=given", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    records = [run.read_record() for run in find_runs(tmp_path / "runs")]
    evaluated = next(record for record in records if record.task == "evaluate")
    assert evaluated.test_accuracy == trained.read_record().test_accuracy
    assert evaluated.test_loss == pytest.approx(trained.read_record().test_loss, rel=1e-6)


@pytest.mark.slow
def test_what_cannot_be_exported_is_named(tmp_path):
    done = run_command(*TINY, "task=export", "weights=given", cwd=tmp_path)
    assert done.returncode == 1
    assert "no finished run to export" in done.stderr
    assert not (tmp_path / "given").exists()


def test_weights_of_another_network_are_refused_with_every_difference(tmp_path):
    model = build_model("resnet20", "standard", 10)
    weights = build_model("resnet20", "bn_resnest", 100).state_dict()
    del weights["stage.0.0.conv1.weight"]
    weights["H_0.weight"] = torch.zeros(10, 3)
    torch.save(weights, tmp_path / "model.pt")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_weights(tmp_path / "model.pt", model)
    text = str(caught.value)
    assert "stage.0.0.conv1.weight is missing" in text
    assert "H_0.weight is not part of this network" in text
    assert "linear.weight is (100, 64) instead of (10, 64)" in text
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trained", "said"),
    [
        (["ant", "bee", "cat"], None),
        (None, None),  # by an earlier version
        (["ant", "cat", "bee"], "but label 1 is bee, and was cat"),
        (["ant", "bee", "wasp"], "but label 2 is cat, and was wasp"),
        (["ant", "bee"], "but label 2 is cat, and was none"),
        (["ant", "bee", "cat", "dog"], "but label 3 is none, and was dog"),
    ],
)
@pytest.mark.parametrize("where", ["run", "export"])
def test_weights_are_evaluated_on_the_classes_that_they_were_trained_on(
    tmp_path, trained, said, where, monkeypatch
):
    monkeypatch.setattr(preflight, "load_weights", lambda *_: None)
    write_parts(tmp_path / "images")
    run = trees.add_run(tmp_path / "runs", record={"classes": trained})
    weights = run.weights_file
    if where == "export":
        weights = tmp_path / "model.safetensors"
        (tmp_path / "config.json").write_text(json.dumps({"classes": trained}))
    weights.touch()
    data = {"name": "mine", "source": "images", "root": str(tmp_path / "images")}
    values = {"dataset": data, "weights": str(weights), "task": "evaluate"}
    config = config_from(config_dict(trees.make_config(tmp_path, arch="resnet8")) | values)
    splits = load(config.dataset)
    if said is None:
        return preflight.check(config, splits, torch.device("cpu"), preflight.Sizes.TWO)
    with pytest.raises(UserError, match=rf"weights=.*: expected images of the classes.* {said}"):
        preflight.check(config, splits, torch.device("cpu"), preflight.Sizes.TWO)
    with pytest.raises(UserError, match=said):
        run_experiment(config)
    failed = RunDirectory.of(config).read_record()
    assert (failed.status, failed.weights) == ("failed", str(weights))


@pytest.mark.parametrize("content", ["corrupt", "another's"])
def test_weights_that_cannot_be_evaluated_are_no_run(tmp_path, content):
    path = tmp_path / "model.pt"
    torch.save(build_model("resnet20", "a_resnest").state_dict(), path)
    if content == "corrupt":
        path.write_bytes(path.read_bytes()[:-5000])
    words = ("dataset.test_limit=20", "dataset.train_limit=20", f"weights={path}")
    config = make_config(*EVALUATE, *words)
    with pytest.raises(UserError, match=r"model.pt: (it is cut short|expected the names and shap)"):
        preflight.check(config, load(config.dataset), torch.device("cpu"), preflight.Sizes.TWO)


@pytest.mark.slow
def test_missing_weights_are_named_before_anything_starts(tmp_path):
    for value, said in (
        ("nowhere.pt", "there is no file nowhere.pt"),
        ("null", "weights=null: expected"),
    ):
        done = run_command(*EVALUATE, f"weights={value}", cwd=tmp_path)
        assert done.returncode == 2
        assert said in done.stderr
    assert not any(tmp_path.rglob("seed=*"))


@pytest.mark.slow
def test_training_from_given_weights_is_not_silently_ignored(tmp_path):
    done = run_command(*TINY, "weights=some.pt", cwd=tmp_path)
    assert done.returncode == 2
    assert "error: weights=some.pt: expected null" in done.stderr


def test_a_truncated_file_of_weights_is_named(tmp_path):
    path = tmp_path / "model.pt"
    model = build_model("resnet20")
    torch.save(model.state_dict(), path)
    assert read_torch(path).keys() == model.state_dict().keys()
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(UserError, match=r"model.pt: it is cut short, corrupt or foreign"):
        load_weights(path, model)


@pytest.mark.slow
def test_weights_that_give_no_finite_loss_are_a_failure_with_a_reason(tmp_path):
    model = build_model("resnet20")
    with torch.no_grad():
        model.linear.bias.fill_(float("nan"))
    torch.save(model.state_dict(), tmp_path / "model.pt")
    done = run_command(*EVALUATE, "weights=model.pt", "dataset.test_limit=20", cwd=tmp_path)
    assert done.returncode == 1
    assert "weights=model.pt: their test loss is nan" in done.stderr
    (run,) = find_runs(tmp_path / "runs")
    assert run.status() == "failed"
