"""Exported networks: what others read gives the logits of what was trained, or is refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import trees
from helpers import REPOSITORY, TINY, run_command

from resnests import build_model, load_model
from resnests.errors import UserError
from resnests.models.resnet import count_parameters
from resnests.models.weights import load_weights, save_weights
from resnests.sharing import export as writers
from resnests.sharing.export import export

IMAGES = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def finished(root: Path, variant: str, form: str):
    """The configuration that exports a finished run, and its network."""
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
    card = (folder / "README.md").read_text()
    assert "| test accuracy | 90.00% |" in card
    assert "mean over n = 2 seed(s) | 91.00% ± 1.41 |" in card
    assert "| optimizer.weight_decay | 0.0005 |" in card
    assert "0123456789abcdef" in card
    code = card.split("```python\n")[1].split("```")[0].replace('"."', repr(str(folder)))
    exec(code, {"images": IMAGES})  # as the card says it is used


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), "sha256 differs"),
        (lambda folder: (folder / "config.json").unlink(), "expected a folder of task=export"),
        (lambda folder: edit(folder, parameters=1), "config.json says 1"),
        (lambda folder: edit(folder, num_classes=7), r"linear.weight is \(10, 64\)"),
        (lambda folder: edit(folder, format="onnx"), "holds format=onnx"),
    ],
)
def test_a_folder_that_is_not_what_it_says_is_refused(tmp_path, break_it, said):
    pytest.importorskip("safetensors", reason="needs resnests[hub]")
    folder = export(finished(tmp_path, "standard", "safetensors")[0])
    break_it(folder)
    with pytest.raises(UserError, match=said):
        load_model(folder)


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
    (tmp_path / "out" / "DIGITS_ResNEst_ResNet_8_seed=0").mkdir(parents=True)
    (tmp_path / "out" / "DIGITS_ResNEst_ResNet_8_seed=0" / "model.onnx").touch()
    file = export(config) / "model.torchscript.pt"
    assert not file.with_name("model.onnx").exists(), "a folder holds one format"
    torch.save(IMAGES, tmp_path / "images.pt")
    code = f"""import torch, sys
logits = torch.jit.load({str(file)!r})(torch.load({str(tmp_path / "images.pt")!r}))
assert "resnests" not in sys.modules
torch.save(logits.detach(), {str(tmp_path / "logits.pt")!r})"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, cwd=tmp_path)
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), model(IMAGES))


def test_an_export_whose_logits_are_off_is_not_written(tmp_path, monkeypatch):
    config, _ = finished(tmp_path, "standard", "torchscript")
    monkeypatch.setattr("resnests.sharing.export.TOLERANCE", -1.0)
    with pytest.raises(UserError, match=r"format=torchscript: its logits are off by"):
        export(config)
    assert not (tmp_path / "out").exists()


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


def test_layers_that_share_a_weight_are_exported(tmp_path):
    pytest.importorskip("safetensors", reason="needs resnests[hub]")

    def tied():
        network = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
        network[1].weight = network[0].weight
        return network

    first, second = tied(), tied()
    (tmp_path / "tied.safetensors").write_bytes(writers._WRITERS["safetensors"](first, IMAGES))
    load_weights(tmp_path / "tied.safetensors", second)
    assert torch.equal(second(torch.ones(1, 4)), first(torch.ones(1, 4)))


def test_a_network_that_a_format_does_not_know_is_one_line(tmp_path, monkeypatch):
    config, _ = finished(tmp_path, "standard", "torchscript")

    def unknown(model, images):
        raise RuntimeError("unsupported\nand how")

    monkeypatch.setitem(writers._WRITERS, "torchscript", unknown)
    with pytest.raises(UserError, match=r"^format=torchscript: the network cannot be exported: Ru"):
        export(config)
