"""What a precision means to PyTorch, and how the record says it."""

import itertools
from dataclasses import replace

import pytest
import torch
from helpers import tiny

from resnests.config.schema import Trainer
from resnests.data.splits import load
from resnests.errors import UserError
from resnests.runs.directory import RunDirectory
from resnests.tasks.experiment import run_experiment
from resnests.tasks.preflight import check
from resnests.training.numerics import arithmetic, require_numerics, set_numerics

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


NEW = hasattr(torch.backends, "fp32_precision")
new_only = pytest.mark.skipif(not NEW, reason="torch has these switches since 2.9")


@pytest.fixture(autouse=True)
def _as_it_was():
    yield
    set_numerics(Trainer())
    torch.backends.cudnn.benchmark = False


@pytest.mark.parametrize(
    ("precision", "convolutions", "products", "measured"),
    [
        ("fp32", False, False, True),
        ("tf32", True, True, True),
        ("bf16", False, False, True),
        ("official", True, False, False),  # PyTorch's own defaults
    ],
)
@pytest.mark.parametrize("before", ["nothing", "old way", "new way", "both"])
def test_a_precision_sets_what_cuda_may_do(precision, convolutions, products, measured, before):
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    if before in ("old way", "both"):
        matmul.allow_tf32 = cudnn.allow_tf32 = True
        torch.set_float32_matmul_precision("medium")
    if before in ("new way", "both") and NEW:
        torch.backends.fp32_precision = torch.backends.cudnn.conv.fp32_precision = "tf32"
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    trainer = Trainer(precision=precision)
    set_numerics(trainer)
    require_numerics(trainer)
    assert cudnn.allow_tf32 is convolutions
    assert matmul.allow_tf32 is products
    assert cudnn.benchmark is measured
    assert torch.get_float32_matmul_precision() == ("high" if products else "highest")
    if NEW:
        names = {False: "ieee", True: "tf32"}
        assert cudnn.conv.fp32_precision == names[convolutions]
        assert matmul.fp32_precision == names[products]
        for one in (torch.backends.mkldnn.conv, torch.backends.mkldnn.matmul):
            assert one.fp32_precision == "ieee", "fp32 on a CPU, too, whatever the precision"


@new_only
@pytest.mark.parametrize("name", ["cudnn.conv", "cuda.matmul", "mkldnn.conv", "mkldnn.matmul"])
def test_a_switch_that_something_changed_is_named(name):
    set_numerics(Trainer())
    backend = torch.backends
    for part in name.split("."):
        backend = getattr(backend, part)
    backend.fp32_precision = "tf32"
    said = f"torch.backends.{name}.fp32_precision=tf32: expected ieee, as trainer.precision=fp32"
    with pytest.raises(UserError, match=said):
        require_numerics(Trainer())


def test_switches_of_a_deterministic_run_are_verified():
    trainer = Trainer(deterministic=True)
    set_numerics(trainer)
    require_numerics(trainer)
    torch.backends.cudnn.benchmark = True
    with pytest.raises(UserError, match=r"cudnn.benchmark=True: expected False"):
        require_numerics(trainer)
    torch.use_deterministic_algorithms(False)
    with pytest.raises(UserError, match=r"trainer.deterministic=True: expected a process"):
        require_numerics(trainer)


OWN = """
import torch
from torch import nn

torch.backends.fp32_precision = "tf32"  # as PyTorch recommends it

class Net(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(nn.Flatten(), nn.LazyLinear(num_classes))

class Changing(Net):
    def forward(self, images):
        torch.backends.cudnn.conv.fp32_precision = "tf32"
        return super().forward(images)
"""


@pytest.mark.slow
@new_only
def test_a_users_file_changes_no_precision(tmp_path, monkeypatch):
    (tmp_path / "switching.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    none = ("arch.blocks=null", "arch.widths=null", f"runs_dir={tmp_path / 'runs'}")
    sound = tiny(*none, "+arch._target_=switching.Net")
    assert run_experiment(sound) == "complete"
    require_numerics(sound.trainer)
    assert RunDirectory.of(sound).read_record().arithmetic == "fp32"
    changing = tiny(*none, "+arch._target_=switching.Changing")
    with pytest.raises(UserError, match="something of your own set it"):
        run_experiment(changing)
    record = RunDirectory.of(changing).read_record()
    assert (record.status, record.epochs) == ("failed", 0), "at the end of its first epoch"
    splits = load(changing.dataset)
    with pytest.raises(UserError, match="something of your own set it"):
        check(changing, splits, torch.device("cpu"))


METRIC = """
import torch
import torchmetrics

torch.backends.cudnn.conv.fp32_precision = "tf32"

class Mine(torchmetrics.MeanMetric):
    def update(self, scores, labels):
        super().update(1.0)

class Changing(Mine):
    def update(self, scores, labels):
        torch.backends.cudnn.conv.fp32_precision = "tf32"
        super().update(scores, labels)
"""


@pytest.mark.slow
@new_only
def test_a_users_metric_changes_no_precision_of_what_is_measured_later(tmp_path, monkeypatch):
    pytest.importorskip("torchmetrics", reason="needs resnests[metrics]")
    (tmp_path / "measuring.py").write_text(METRIC)
    monkeypatch.syspath_prepend(tmp_path)
    here = (f"runs_dir={tmp_path / 'runs'}", "trainer.epochs=1")
    trained = tiny(*here)
    assert run_experiment(trained) == "complete"
    given = {"task": "evaluate", "weights": str(RunDirectory.of(trained).weights_file)}
    for kind, task in itertools.product(("Mine", "Changing"), ({}, given)):
        config = replace(tiny(*here, f"+metrics.mine._target_=measuring.{kind}"), **task)
        before = RunDirectory.of(config).record_or_none()
        if kind == "Mine":
            assert run_experiment(config, clear=lambda: None) == "complete"
            require_numerics(config.trainer)
        else:
            with pytest.raises(UserError, match="something of your own set it"):
                run_experiment(config, clear=lambda: None)
            assert RunDirectory.of(config).record_or_none() == before, "nothing is on record"


@pytest.mark.parametrize(
    ("device", "capability", "said"),
    [
        (CPU, None, ["fp32", "fp32", "bf16 by autocast", "fp32"]),
        (CUDA, (7, 5), ["fp32", "fp32", "bf16 by autocast", "fp32"]),
        (CUDA, (9, 0), ["fp32", "tf32", "bf16 by autocast", "tf32 in convolutions"]),
    ],
)
def test_the_record_says_what_was_computed(monkeypatch, device, capability, said):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    for name, expected in zip(("fp32", "tf32", "bf16", "official"), said, strict=True):
        set_numerics(Trainer(precision=name))
        assert arithmetic(Trainer(precision=name), device) == expected
    set_numerics(Trainer())
    if device == CUDA and capability == (9, 0):
        torch.backends.cuda.matmul.allow_tf32 = True
        assert arithmetic(Trainer(), device) == "tf32 in matrix products", "what the switches say"
