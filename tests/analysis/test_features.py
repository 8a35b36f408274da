"""What makes the bounds rigorous: the logits are the network's own maps of its exact features."""

from functools import partial

import pytest
import torch
from torch import nn

from resnests import build_model
from resnests.analysis.features import (
    Extractor,
    Family,
    bytes_needed,
    extractor,
    window_means,
)
from resnests.analysis.reading import plan_memory
from resnests.errors import UserError
from resnests.models.densenet import DenseNet
from resnests.models.single_stage import SingleStage
from resnests.runs.analysis import Analysis


def trained(name: str) -> nn.Module:
    """Return a network in float64, with running statistics of its own as after some training."""
    torch.manual_seed(1)
    model = NETWORKS[name]().double().train()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1, 0.3)
            nn.init.normal_(layer.bias, 0, 0.3)
    for _ in range(3):
        model(torch.randn(8, 3, 32, 32, dtype=torch.float64))
    return model


NETWORKS = {
    **{h: partial(build_model, "resnet20", h) for h in ("resnest", "bn_resnest", "a_resnest")},
    "one stage": partial(build_model, ((3,), (12,)), "resnest"),
    "odd sizes": partial(build_model, ((1, 2), (6, 12)), "bn_resnest"),
    "densenest": partial(DenseNet, 10, 22, 4, 0.5, True, "densenest"),
    "connected resnest": partial(SingleStage, 10, 8, 3, 5, 11),
    "connected densenest": partial(SingleStage, 10, 8, 3, 5, head="densenest"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_the_networks_own_maps_of_its_exact_features(name):
    model = trained(name)
    side = 30 if name == "odd sizes" else 32
    images = torch.randn(6, 3, side, side - 2, dtype=torch.float64)
    known = extractor(model)
    with torch.no_grad():
        features, logits = known.read(images)
        family = known.families["exact"]
        again = features["exact"] @ family.weight.T + family.bias
        assert torch.allclose(logits, model(images), rtol=0, atol=1e-9)
    assert logits.abs().max() > 1e-2
    assert (again - logits).abs().max() < 1e-9
    assert features["exact"].shape[1] == sum(family.sizes) == family.ends[-1]


@pytest.mark.parametrize("name", ["resnest", "bn_resnest", "one stage", "connected resnest"])
def test_the_representation_before_the_last_block_is_linear_in_the_features(name):
    """(b) is posed in x_{L-1}: here it is, read where the network has it."""
    model = trained(name)
    images = torch.randn(6, 3, 32, 32, dtype=torch.float64)
    known = extractor(model)
    family, seen = known.families["exact"], {}
    if name == "connected resnest":
        model.net.G[-1].register_forward_pre_hook(lambda _m, args: seen.update(x=args[0]))
    else:
        model.stage[-1][-1].bn1.register_forward_pre_hook(
            lambda _m, args: seen.update(x=args[0].mean((2, 3)))
        )
    with torch.no_grad():
        model(images)
        features = known.read(images)[0]["exact"][:, : family.ends[-2]]
    assert (features @ family.before.T - seen["x"]).abs().max() < 1e-9


@pytest.mark.parametrize(
    ("arch", "augmented", "windows"),
    [
        ("resnet20", 339, 1_760),
        ("resnet110", 2_019, 10_400),
        ("wrn16_8", 1_795, 9_472),
        ("wrn40_4", 2_691, 13_952),
    ],
)
def test_counts_of_features(arch, augmented, windows):
    with torch.device("meta"):
        counts = {
            head: extractor(build_model(arch, head)).families
            for head in ("standard", "resnest", "bn_resnest", "a_resnest")
        }
    assert sum(counts["a_resnest"]["exact"].sizes) == augmented
    for head in ("resnest", "bn_resnest"):
        assert sum(counts[head]["exact"].sizes) == windows
        assert sum(counts[head]["pooled"].sizes) == augmented
    assert counts["standard"].keys() == {"pooled"}


@pytest.mark.slow
def test_pooled_features_are_not_enough_for_a_resnest():
    """The obvious experiment, pooled v_i for window means, would miss the logits by far."""
    model = trained("resnest")
    known = extractor(model)
    with torch.no_grad():
        features, logits = known.read(torch.randn(400, 3, 32, 32, dtype=torch.float64))
    x = torch.cat((features["pooled"], torch.ones_like(logits[:, :1])), 1)
    residual = logits - x @ torch.linalg.lstsq(x, logits).solution
    assert residual.norm() > 0.02 * (logits - logits.mean(0)).norm()


def test_window_means_of_a_convolution():
    x, conv = torch.randn(4, 3, 5, 7).double(), nn.Conv2d(3, 6, 3, padding=1, bias=False).double()
    expected = conv(x).mean((2, 3))
    assert torch.allclose(window_means(x) @ conv.weight.flatten(1).T, expected, atol=1e-12)


def test_a_width_below_the_number_of_classes_leaves_no_two_maps_to_choose():
    assert extractor(build_model(((1,), (9,)), "resnest", 10)).families["exact"].before is None
    assert extractor(SingleStage(10, 8, 2, 5, width=9)).families["exact"].before is None


def test_a_network_without_known_features_is_one_line():
    with pytest.raises(UserError, match="arch: expected a network whose features are known, not L"):
        extractor(nn.Linear(3, 2))


def test_features_beyond_the_limit_are_kept_in_a_file_but_not_what_solving_takes(tmp_path):
    known, images = extractor(NETWORKS["resnest"]()), 7000
    done = Analysis(5e-4, 5e-4, "", train_images=6000, test_images=1000)
    all_of_it = bytes_needed(known.families["exact"], images) / 1e9
    square = bytes_needed(known.families["exact"], 0) / 1e9
    assert plan_memory(known, done, all_of_it, tmp_path)["exact"] is None
    less = plan_memory(known, done, (all_of_it + square) / 2, tmp_path)
    assert less["exact"] == tmp_path / ".features.exact.tmp"
    with pytest.raises(UserError, match=r"memory_gb=0.0\d+: expected at least 1, and cluster"):
        plan_memory(known, done, square / 2, tmp_path)


def test_the_limit_counts_the_last_maps_and_their_second_order(tmp_path):
    """The 100 vectors of Lanczos take most, where the last stage is one wide block."""
    sizes, before = [256, 9 * 512], torch.empty(512, 256, device="meta")
    readout = torch.empty(10, 512, device="meta")
    free = Family(["projection", "3.1"], sizes)
    last = Family(["projection", "3.1"], sizes, before=before, readout=readout)
    done = Analysis(5e-4, 5e-4, "", train_images=6000, test_images=1000)
    known = {name: Extractor({"exact": f}, None) for name, f in (("free", free), ("last", last))}
    assert bytes_needed(last, 7000) - bytes_needed(free, 7000) == 8 * 7000 * 4865, "their copy"
    assert plan_memory(known["free"], done, 2.0, tmp_path)["exact"] is None
    with pytest.raises(UserError, match="memory_gb=2: expected at least 3, and cluster"):
        plan_memory(known["last"], done, 2.0, tmp_path)
    assert plan_memory(known["last"], done, 3.0, tmp_path)["exact"] is not None
    assert plan_memory(known["last"], done, 3.3, tmp_path)["exact"] is None
