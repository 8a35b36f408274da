"""Exported networks: what others read gives the logits of what was trained, or is refused."""

import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import trees
from data_images import write_classes
from helpers import REPOSITORY, TINY, run_command, tiny

from resnests import build_model, load_model, load_runs
from resnests.config.schema import config_dict, config_from
from resnests.errors import UserError
from resnests.models.resnet import count_parameters, load_arch
from resnests.models.weights import read_torch, save_weights
from resnests.runs.directory import RunDirectory
from resnests.sharing import export as writers
from resnests.sharing.card import card
from resnests.sharing.export import export
from resnests.sharing.load import _require_own_code
from resnests.sweep.drive import run_sweep
from resnests.tasks.experiment import run_experiment

IMAGES = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def finished(root: Path, variant: str, form: str):
    """Return the configuration that exports a finished run, and its network."""
    torch.manual_seed(0)
    model = build_model("resnet8", variant)
    model(IMAGES)  # statistics of batch norms that are not those of a new network
    chosen = {"dataset": "digits", "arch": "resnet8", "variant": variant}
    for seed, accuracy in ((0, 90.0), (1, 92.0)):
        run = trees.add_run(
            root / "runs", accuracy, parameters=count_parameters(model), seed=seed, **chosen
        )
        save_weights(run.weights_file, model)
    wanted = {"task": "export", "weights": str(root / "out"), "format": form}
    return trees.make_config(root / "runs", **chosen, **wanted), model.eval()


def test_a_home_is_expanded_where_python_calls(tmp_path, monkeypatch):
    pytest.importorskip("safetensors", reason="needs resnests[hub]")
    config, model = finished(tmp_path, "standard", "safetensors")
    place = export(config).relative_to(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert torch.equal(load_model(f"~/{place}")(IMAGES), model(IMAGES))
    given = build_model("resnet8", weights=f"~/{place}/model.safetensors")
    assert torch.equal(given.eval()(IMAGES), model(IMAGES))
    assert len(load_runs("~/runs")) == 2


@pytest.mark.parametrize("variant", ["standard", "a_resnest"])
def test_load_model_gives_the_network_back(tmp_path, variant):
    pytest.importorskip("safetensors", reason="needs resnests[hub]")
    config, model = finished(tmp_path, variant, "safetensors")
    folder = export(config)
    assert folder.name.startswith("DIGITS_")
    loaded = load_model(folder)
    assert not loaded.training
    assert torch.equal(loaded(IMAGES), model(IMAGES))
    given = build_model("resnet8", variant, weights=folder / "model.safetensors")
    assert torch.equal(given.eval()(IMAGES), model(IMAGES))
    text = (folder / "README.md").read_text()
    assert "| test accuracy | 90.00% |" in text
    assert "mean over n = 2 seed(s) | 91.00% ± 1.41 |" in text
    assert "| optimizer.weight_decay | 0.0005 |" in text
    assert "0123456789abcdef" in text
    code = text.split("```python\n")[1].split("```")[0].replace('"."', repr(str(folder)))
    exec(code, {"images": IMAGES})  # as the card says it is used


@pytest.mark.parametrize(
    ("config", "title", "origin"),
    [
        ({"arch": {"_target_": "mine.Net"}}, "# tiny, Digits", "A network made by `mine.Net`, tr"),
        (
            {"arch": {"_target_": "stem", "network": {"_target_": "vision.net"}}},
            "# tiny, Digits",
            "A network made by `stem` with `vision.net`, trained",
        ),
        ({"variant": {"_target_": "mine.Head"}}, "# tiny Standard, Digits", "made by `mine.Head`"),
        ({}, "# tiny Standard, Digits", "A residual network, built as the baseline of"),
    ],
)
def test_a_card_calls_no_other_network_a_resnest(tmp_path, config, title, origin):
    run = trees.add_run(tmp_path, 90, dataset="digits", arch="resnet8")
    record = dataclasses.replace(run.read_record(), arch="tiny", config=config)
    about = {"files": {}, "mean": 0, "std": 1, "num_classes": 10, "image_size": [8, 8]}
    text = card(run, record, about | {"size": None, "classes": None})
    assert title in text
    assert origin in text
    assert ("ResNEst" in text.split("| | |")[0]) == (config == {})


def test_a_network_with_frozen_parameters_is_given_back_whole(tmp_path):
    pytest.importorskip("safetensors", reason="needs resnests[hub]")
    config, model = finished(tmp_path, "standard", "safetensors")
    run, frozen = RunDirectory.of(config), sum(p.numel() for p in model.stage.parameters())
    record = run.read_record()
    trained = record.parameters - frozen
    run.write_record(dataclasses.replace(record, parameters=trained, frozen_parameters=frozen))
    folder = export(config)
    assert torch.equal(load_model(folder)(IMAGES), model(IMAGES))
    text = (folder / "README.md").read_text()
    assert f"| parameters | {trained + frozen} |" in text
    assert f"| frozen parameters among them | {frozen} |" in text


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), "sha256 differs"),
        (lambda folder: (folder / "config.json").unlink(), "expected a folder of task=export"),
        (lambda folder: edit(folder, parameters=1), "config.json was edited"),
        (lambda folder: edit(folder, num_classes=7), "config.json was edited"),
        (lambda folder: edit(folder, mean=[0.0, 0.0, 0.0]), "config.json was edited"),
        (
            lambda folder: edit(folder, variant={"name": "standard", "head": "bn_resnest"}),
            "config.json was edited",
        ),
        (lambda folder: edit(folder, files={"onnx": {}}), "holds format=onnx"),
        (lambda folder: edit(folder, arch="resnet8"), "arch=resnet8: expected the keys of"),
        (lambda folder: edit(folder, num_classes=None), "expected a folder of task=export"),
        (lambda folder: edit(folder, files=[]), "expected a folder of task=export"),
        (lambda folder: edit(folder, dataset="${oc.env:HOME}"), "refers to another"),
        (lambda folder: (folder / "config.json").write_text("[]"), "expected a folder of task=exp"),
        (lambda folder: (folder / "config.json").write_text("{}"), "expected a folder of task=exp"),
        (lambda folder: (folder / "config.json").write_text("[" * 10**5), "expected a folder of"),
        (lambda folder: link(folder / "config.json"), "expected a folder of .* no plain file"),
        (
            lambda folder: link(folder / "model.safetensors"),
            "expected a folder of .* no plain file",
        ),
        (lambda folder: edit(folder, num_classes=float("inf")), "expected a folder of task=export"),
        (lambda folder: edited(folder, num_classes=-3), "its network cannot be built: Runtime"),
        (
            lambda folder: edited(folder, variant={"name": "mine", "head": "standart"}),
            "variant.head=standart: expected one of standard",
        ),
    ],
)
def test_a_folder_that_is_not_what_it_says_is_refused(tmp_path, break_it, said):
    pytest.importorskip("safetensors", reason="needs resnests[hub]")
    folder = export(finished(tmp_path, "standard", "safetensors")[0])
    break_it(folder)
    with pytest.raises(UserError, match=said):
        load_model(folder)


def test_code_that_a_folder_names_runs_only_with_trust(tmp_path, monkeypatch):
    pytest.importorskip("safetensors", reason="needs resnests[hub]")
    folder = export(finished(tmp_path, "standard", "safetensors")[0])
    code = "import pathlib\npathlib.Path('ran').touch()\nfrom resnests import build_model\n"
    (tmp_path / "shared_nets.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    written = str(tmp_path / "written")
    for arch in (
        {"_target_": "shared_nets.build_model"},
        {"_target_": "shared_nets.build_model\n\x1b[2Jsafe"},
        {"_target_": "resnests.runs.files.write_atomic", "path": written, "data": ""},
        {
            "_target_": "resnests.models.single_stage.SingleStage",
            "block": [{"_target_": "numpy.savetxt", "fname": written, "X": []}],
        },
        {"_target_": "timm.create_model", "model_name": "resnet18", "checkpoint_path": written},
        {
            "_target_": "resnests.models.small_images.small_stem",
            "network": {"_target_": "torchvision.models.resnet18", "weights": "DEFAULT"},
        },
    ):
        edit(folder, arch={"name": "mine"} | arch)
        strip(folder)
        with pytest.raises(UserError, match=r"names code, \S.*which is not run. trust=True") as it:
            load_model(folder)
        assert str(it.value).isprintable()
        with pytest.raises(UserError, match="which is not run"):
            torch.hub.load(str(REPOSITORY), "load_model", folder, source="local")
    assert not (tmp_path / "ran").exists()
    assert not Path(written).exists()
    edit(folder, arch={"name": "mine", "_target_": "shared_nets.build_model", "arch": "resnet8"})
    strip(folder)
    assert torch.is_tensor(load_model(folder, trust=True)(IMAGES))


def link(file: Path) -> None:
    """Make `file` a link to a device, which could have been one without end."""
    file.unlink()
    file.symlink_to("/dev/null")


def edited(folder: Path, **values) -> None:
    edit(folder, **values)
    strip(folder)


def strip(folder: Path) -> None:
    """Make a folder whole again, as somebody who edits it on purpose would."""
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    save_file(load_file(file), file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    edit(folder, files={"safetensors": {"file": file.name, "sha256": digest}})


@pytest.mark.parametrize("spelled", ["${", "\\u0024{", "$\\u007b", "\\u0024\\u007B"])
@pytest.mark.parametrize("place", ["a value", "a key"])
def test_what_would_call_code_while_it_is_read_is_refused_however_it_is_spelled(
    tmp_path, spelled, place
):
    pytest.importorskip("safetensors", reason="needs resnests[hub]")
    folder = export(finished(tmp_path, "standard", "safetensors")[0])
    call = "?{oc.create:{_target_:numpy.savetxt,fname:'%s',X:[]}}" % (tmp_path / "written")
    given = {"x": [{"y": call}]} if place == "a value" else {call: 1}
    edit(folder, arch={"name": "mine", "_target_": "resnests.models.densenet.DenseNet"} | given)
    file = folder / "config.json"
    file.write_text(file.read_text().replace("?{", spelled))
    with pytest.raises(UserError, match="a value refers to another one"):
        load_model(folder)
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "densenest40_12"])
def test_networks_of_conf_are_no_code_of_others(tmp_path, name):
    _require_own_code(tmp_path, load_arch(name))


def test_a_folder_of_an_earlier_version_is_read(tmp_path):
    pytest.importorskip("safetensors", reason="needs resnests[hub]")
    config, model = finished(tmp_path, "standard", "safetensors")
    folder = export(config)
    strip(folder)
    about = json.loads((folder / "config.json").read_text())
    about |= {"format": "safetensors"} | about.pop("files")["safetensors"]
    (folder / "config.json").write_text(json.dumps(about))
    assert torch.equal(load_model(folder)(IMAGES), model(IMAGES))


def test_a_folder_exported_in_two_formats_keeps_both(tmp_path):
    pytest.importorskip("safetensors", reason="needs resnests[hub]")
    config, model = finished(tmp_path, "standard", "safetensors")
    folder = export(config)
    assert export(dataclasses.replace(config, format="torchscript")) == folder
    assert torch.equal(load_model(folder)(IMAGES), model(IMAGES))
    about = json.loads((folder / "config.json").read_text())
    assert list(about["files"]) == ["safetensors", "torchscript"]
    text = (folder / "README.md").read_text()
    assert "load_model" in text
    assert "torch.jit.load" in text
    for described in about["files"].values():
        assert described["sha256"] in text
    run = RunDirectory.of(config)
    run.write_record(dataclasses.replace(run.read_record(), test_accuracy=12.0))
    export(dataclasses.replace(config, format="torchscript"))
    assert not (folder / "model.safetensors").exists(), "it is another network's"


TIED = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.one, self.two = nn.Linear(48, 48), nn.Linear(48, 48)
        self.two.weight = self.one.weight
        self.last = nn.Linear(48, num_classes)

    def forward(self, x):
        x = nn.functional.adaptive_avg_pool2d(x, 4).flatten(1)
        return self.last(self.two(self.one(x).relu()).relu())
"""


def test_a_network_with_tied_weights_is_trained_exported_and_loaded(tmp_path, monkeypatch):
    pytest.importorskip("safetensors", reason="needs resnests[hub]")
    (tmp_path / "tied_net.py").write_text(TIED)
    monkeypatch.syspath_prepend(tmp_path)
    tree = config_dict(tiny("trainer.epochs=1", f"runs_dir={tmp_path / 'runs'}"))
    tree["arch"] = {"_target_": "tied_net.Net"}
    assert run_experiment(config_from(tree)) == "complete"
    wanted = {"task": "export", "weights": str(tmp_path / "out"), "format": "safetensors"}
    config = config_from(tree | wanted)
    model = load_model(export(config), trust=True)
    assert model.two.weight is model.one.weight
    state = read_torch(RunDirectory.of(config).weights_file)
    assert torch.equal(model.two.weight, state["one.weight"])


def test_whoever_gets_a_folder_can_prepare_an_image_and_name_a_class(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pytest.importorskip("safetensors", reason="needs resnests[hub]")
    config, model = finished(tmp_path, "standard", "safetensors")
    names = [f"größe|{n}" for n in range(10)]
    for name in names:
        write_classes(tmp_path / "images", 5, (40, 30), [name])
    data = {"name": "mine", "source": "images", "root": str(tmp_path / "images"), "size": 24}
    config = config_from(config_dict(config) | {"dataset": data})
    run = RunDirectory.of(config)
    run.path.mkdir(parents=True)
    record = RunDirectory.of(finished(tmp_path, "standard", "safetensors")[0]).read_record()
    run.write_record(dataclasses.replace(record, mean=[0.5] * 3, std=[0.2] * 3, num_classes=10))
    save_weights(run.weights_file, model)
    folder = export(config)
    about = json.loads((folder / "config.json").read_text())
    assert (about["classes"], about["size"], about["image_size"]) == (names, 24, [24, 24])
    text = (folder / "README.md").read_text()
    assert "(N, 3, 24, 24)" in text
    assert "the shorter side was scaled to 24 pixels" in text
    assert '(N, 10), one for each class, in this order: "größe|0", "größe|1",' in text
    assert torch.equal(load_model(folder)(IMAGES), model(IMAGES))
    edit(folder, classes=names[::-1])
    with pytest.raises(UserError, match=r"config.json was edited"):
        load_model(folder)


def test_the_card_averages_complete_runs_alone_and_counts_nothing_correct(tmp_path):
    config, _ = finished(tmp_path, "standard", "torchscript")
    run = RunDirectory.of(config)
    record = run.read_record()
    others = [(2, "complete", 0.0), (3, "interrupted", 50.0), (4, "running", 60.0)]
    for seed, status, accuracy in others:
        changed = {"seed": seed, "status": status, "test_accuracy": accuracy}
        other = RunDirectory(run.path.parent / f"seed={seed}")
        other.path.mkdir()
        other.write_record(dataclasses.replace(record, **changed))
    text = (export(config) / "README.md").read_text()
    assert "mean over n = 3 seed(s) | 60.67% ± 52.55 |" in text


def edit(folder: Path, **values) -> None:
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(about | values))


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["bn_resnest", "a_resnest"])
def test_onnx_gives_the_logits_in_onnxruntime(tmp_path, variant):
    pytest.importorskip("onnxscript", reason="needs resnests[onnx]")
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs resnests[onnx]")
    config, model = finished(tmp_path, variant, "onnx")
    folder = export(config)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    for images in (IMAGES, IMAGES[:1]):
        (logits,) = session.run(["logits"], {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), model(images), atol=1e-4, rtol=1e-4)
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.onnx",
    ]


@pytest.mark.slow
def test_torchscript_needs_nothing_of_ours(tmp_path):
    config, model = finished(tmp_path, "resnest", "torchscript")
    file = export(config) / "model.torchscript.pt"
    torch.save(IMAGES, tmp_path / "images.pt")
    code = f"""import torch, sys
logits = torch.jit.load({str(file)!r})(torch.load({str(tmp_path / "images.pt")!r}))
assert "resnests" not in sys.modules
torch.save(logits.detach(), {str(tmp_path / "logits.pt")!r})"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, cwd=tmp_path)
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), model(IMAGES))


def test_an_export_whose_logits_are_off_is_not_written(tmp_path, monkeypatch):
    pytest.importorskip("safetensors", reason="needs resnests[hub]")
    config, _ = finished(tmp_path, "standard", "torchscript")
    monkeypatch.setattr("resnests.sharing.export.TOLERANCE", -1.0)
    for form in ("torchscript", "safetensors"):
        with pytest.raises(UserError, match=f"format={form}: its logits are off by"):
            export(dataclasses.replace(config, format=form))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["official", "torchscript"])
def test_weights_that_are_none_replace_no_export(tmp_path, form):
    config, model = finished(tmp_path, "standard", form)
    place = export(config)
    file = place / "model.torchscript.pt" if place.is_dir() else place
    sound = file.read_bytes()
    weights = RunDirectory.of(config).weights_file
    weights.write_bytes(b"junk")
    with pytest.raises(UserError, match=r"model\.pt: it is cut short, corrupt or foreign"):
        export(config)
    save_weights(weights, build_model("resnet8", "standard", 11))
    with pytest.raises(UserError, match=r"linear\.weight is \(11, 64\) instead of \(10, 64\)"):
        export(config)
    assert file.read_bytes() == sound
    if form == "official":
        again = build_model("resnet8", weights=file).eval()
        assert torch.equal(again(IMAGES), model(IMAGES))


def test_a_file_that_no_export_wrote_stays(tmp_path):
    config, _ = finished(tmp_path, "standard", "torchscript")
    folder = export(config)
    (folder / "model.onnx").write_bytes(b"mine")
    run = RunDirectory.of(config)
    run.write_record(dataclasses.replace(run.read_record(), test_accuracy=12.0))
    export(config)
    assert (folder / "model.onnx").read_bytes() == b"mine"


@pytest.mark.slow
def test_what_cannot_be_exported_is_named(tmp_path):
    done = run_command(*TINY, "task=export", "weights=o", "format=torchscript", cwd=tmp_path)
    assert done.returncode == 1
    assert "not exported: runs/digits/tiny/standard" in done.stderr
    for arguments, said in (
        (["task=export", "weights=o", "format=gguf"], "format=gguf: expected one of official, "),
        (["format=onnx"], "format=onnx: expected official, as task=train exports nothing"),
    ):
        done = run_command(*TINY, *arguments, cwd=tmp_path)
        assert done.returncode == 2
        assert said in done.stderr
    assert not (tmp_path / "o").exists()


def test_torch_hub_has_the_networks(tmp_path):
    torch.save(build_model("resnet20").state_dict(), tmp_path / "model.pt")
    model = torch.hub.load(
        str(REPOSITORY), "build_model", "resnet20", weights=tmp_path / "model.pt", source="local"
    )
    assert count_parameters(model) == 272_282
    with pytest.raises(UserError, match="expected a folder of task=export"):
        torch.hub.load(str(REPOSITORY), "load_model", tmp_path, source="local")


def test_a_network_that_a_format_does_not_know_is_one_line(tmp_path, monkeypatch):
    config, _ = finished(tmp_path, "standard", "torchscript")

    def unknown(*_):
        raise RuntimeError("unsupported\nand how")

    monkeypatch.setitem(writers._WRITERS, "torchscript", unknown)
    with pytest.raises(UserError, match=r"^format=torchscript: the network cannot be exported: Ru"):
        export(config)


@pytest.mark.parametrize("form", ["official", "torchscript"])
def test_two_runs_that_would_share_a_folder_are_refused(tmp_path, form):
    """The official names have no recipe in them."""
    wanted = ("task=export", f"weights={tmp_path / 'out'}", f"format={form}")
    runs = [tiny(*wanted, f"optimizer.lr={lr}", f"runs_dir={tmp_path}") for lr in (0.1, 0.2)]
    with pytest.raises(UserError, match=r"^weights=\S*out: expected one of .* and .*_seed=0$"):
        run_sweep(runs, lambda *_: None)
    assert not (tmp_path / "out").exists()
