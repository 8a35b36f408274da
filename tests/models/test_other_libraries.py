"""Networks of torchvision and timm: by YAML alone, and with a stem for small images."""

import pytest
import torch
from helpers import tiny
from torch import nn

from resnests import build_model
from resnests.config.schema import config_dict, config_from, part_from
from resnests.data.splits import load
from resnests.errors import UserError
from resnests.models.resnet import build_network, load_arch
from resnests.models.small_images import small_stem
from resnests.runs.digests import with_digests
from resnests.sweep.drive import run_sweep
from resnests.tasks import preflight

STANDARD = part_from("variant", {"name": "standard", "head": "standard"})
SMALL = ("resnet18", "mobilenet_v3_small", "densenet121", "efficientnet_b0")


def network(**values):
    return build_network(part_from("arch", values), STANDARD, 7)


@pytest.mark.parametrize(
    "values",
    [
        {"_target_": "torchvision.models.resnet18"},
        {"_target_": "torchvision.models.resnet18", "weights": None, "num_classes": 7},
        {"_target_": "torchvision.models.squeezenet1_1"},
    ],
)
def test_a_factory_with_kwargs_is_given_no_name_that_its_signature_lacks(values):
    assert network(**values)(torch.zeros(2, 3, 64, 64)).shape == (2, 7)


def test_another_number_of_classes_is_refused():
    with pytest.raises(UserError, match=r"arch.num_classes=10: expected 7, as the data set has"):
        network(_target_="torchvision.models.resnet18", num_classes=10)


def test_a_head_goes_only_to_a_network_that_names_it():
    arch = part_from("arch", {"_target_": "torchvision.models.resnet18"})
    variant = part_from("variant", {"name": "resnest", "head": "resnest"})
    with pytest.raises(UserError, match=r"variant.head=resnest: expected standard, as torchvision"):
        build_network(arch, variant, 7)


@pytest.mark.parametrize("name", SMALL)
def test_networks_for_small_images_keep_their_pixels_in_the_stem(name):
    model = build_model(name, num_classes=7).eval()
    sizes = []
    for layer in [m for m in model.modules() if isinstance(m, nn.Conv2d)][:2]:
        layer.register_forward_hook(lambda _, inputs, out: sizes.append(inputs[0].shape[-1]))
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 7)
    assert sizes == [32, 32]
    assert load_arch(name).name == name


def test_a_stem_without_a_stride_is_refused():
    with pytest.raises(UserError, match=r"expected a network with a strided convolution"):
        small_stem(lambda num_classes: nn.Conv2d(3, num_classes, 1), 3)


@pytest.mark.parametrize("name", ["convnext_atto", "vit_tiny"])
def test_networks_of_timm(name):
    pytest.importorskip("timm")
    assert build_model(name, num_classes=7)(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


def test_a_network_of_torchvision_passes_the_check_and_has_no_digest_of_its_source():
    tree = config_dict(tiny()) | {"arch": {"_target_": "torchvision.models.squeezenet1_1"}}
    (config,) = with_digests([config_from(tree)])
    assert config.digests == {}
    preflight.check(config, load(config.dataset), torch.device("cpu"), preflight.Sizes.TWO)


@pytest.mark.slow
def test_a_dry_run_tries_what_users_brought(tmp_path):
    tree = config_dict(tiny(f"runs_dir={tmp_path / 'runs'}", "sweep.dry_run=true"))
    broken = tree | {"arch": {"_target_": "torchvision.models.googlenet", "init_weights": False}}
    with pytest.raises(UserError, match=r"expected logits of shape \(32, 10\), not GoogLeNetOut"):
        run_sweep([config_from(broken)], lambda *_: None)
    assert not (tmp_path / "runs").exists()
