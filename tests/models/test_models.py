import numpy as np
import pytest
import torch
from torch import nn

from resnests import build_model
from resnests.config.parts import HEADS
from resnests.errors import UserError
from resnests.models.resnet import count_parameters, load_arch

# shared facts of the paper: trainable parameters, standard / resnest / bn_resnest / a_resnest
PARAMETERS = {
    (10, "wrn16_8"): (11_091_594, 11_090_570, 11_091_594, 8_744_164),
    (10, "wrn40_4"): (8_977_226, 8_976_714, 8_977_226, 8_411_420),
    (10, "resnet110"): (1_730_522, 1_730_394, 1_730_522, 1_713_620),
    (10, "resnet20"): (272_282, 272_154, 272_282, 238_130),
    (100, "wrn16_8"): (11_137_764, 11_136_740, 11_137_764, 8_906_344),
    (100, "wrn40_4"): (9_000_356, 8_999_844, 9_000_356, 8_655_320),
    (100, "resnet110"): (1_736_372, 1_736_244, 1_736_372, 1_900_280),
    (100, "resnet20"): (278_132, 278_004, 278_132, 269_540),
}


@pytest.mark.slow
@pytest.mark.parametrize(("classes", "arch"), PARAMETERS)
def test_parameter_counts_of_the_paper(classes, arch):
    counts = tuple(count_parameters(build_model(arch, head, classes)) for head in HEADS)
    assert counts == PARAMETERS[classes, arch]


def official_draws(arch: str, classes: int, head: str, seed: int) -> list[torch.Tensor]:
    """Follow the official procedure layer by layer: what is drawn, in which order, and what of it
    is kept.
    """
    spec = load_arch(arch)
    torch.manual_seed(seed)
    kept = [nn.Conv2d(3, spec.widths[0], 3, bias=False).weight]
    channels, blocks = spec.widths[0], []
    for stage, (depth, width) in enumerate(zip(spec.blocks, spec.widths, strict=True)):
        for index in range(depth):
            stride = 2 if stage and not index else 1
            drawn = [
                nn.Conv2d(channels, width, 3, bias=False).weight,
                nn.Conv2d(width, width, 3, bias=False).weight,
            ]
            if stride != 1 or channels != width:
                drawn.append(nn.Conv2d(channels, width, 1, bias=False).weight)
            blocks.append(drawn)
            channels = width
    linear = nn.Linear(channels, classes)
    if head == "a_resnest":
        del blocks[-1][1]
        kept += [weight for drawn in blocks for weight in drawn]
        widths = [
            width
            for depth, width in zip(spec.blocks, spec.widths, strict=True)
            for _ in range(depth)
        ]
        for width in [3, *widths]:
            layer = nn.Linear(width, classes)
            kept += [layer.weight, layer.bias]
        return kept
    return kept + [weight for drawn in blocks for weight in drawn] + [linear.weight, linear.bias]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 6])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("arch", ["resnet20", "wrn16_8"])
def test_a_seed_gives_the_official_initial_network(arch, head, seed):
    expected = official_draws(arch, 10, head, seed)
    torch.manual_seed(seed)
    state = build_model(arch, head, 10).state_dict()
    drawn = [value for name, value in state.items() if "bn" not in name]
    assert len(drawn) == len(expected)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(drawn, expected, strict=True))


def test_state_dicts_have_the_official_names():
    standard = build_model("resnet20", "standard").state_dict()
    assert {
        "expansion.weight",
        "stage.1.0.projection.0.weight",
        "stage.2.2.bn2.running_var",
    } < standard.keys()
    assert {"final_bn.weight", "linear.bias"} < standard.keys()
    augmented = build_model("resnet20", "a_resnest").state_dict()
    assert {
        "H_0.weight",
        "H_k.0.0.weight",
        "H_k.2.2.bias",
        "stage.2.2.conv1.weight",
    } < augmented.keys()
    assert not {"linear.weight", "final_bn.weight", "stage.2.2.conv2.weight"} & augmented.keys()
    assert not any(
        name.startswith("final_bn") for name in build_model("resnet20", "resnest").state_dict()
    )


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("size", [(32, 32), (28, 40), (8, 8)])
def test_logits_for_images_of_any_size(head, size):
    assert build_model(((1, 1, 1), (4, 8, 16)), head, 7)(torch.randn(2, 3, *size)).shape == (2, 7)


@pytest.mark.parametrize(
    ("arch", "depth"), [("resnet32", 15), ("resnet56", 27), ("wrn28_10", 12), ("resnet8", 3)]
)
def test_further_depths_are_yaml_only(arch, depth):
    assert sum(load_arch(arch).blocks) == depth


def test_a_resnest_is_a_sum_of_linear_maps_of_input_and_features():
    """Scaling one head's weights moves the logits linearly: nothing else reads that head."""
    model = build_model(((1, 1), (4, 8)), "a_resnest", 3).eval()
    x = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        full = model(x)
        part = x.mean((2, 3)) @ model.H_0.weight.T + model.H_0.bias
        model.H_0.weight.zero_()
        model.H_0.bias.zero_()
        assert torch.allclose(model(x) + part, full, atol=1e-6)


def test_under_autocast_the_logits_of_many_blocks_are_summed_in_fp32():
    torch.manual_seed(0)
    model = build_model(([18, 18, 18], [4, 4, 4]), "a_resnest")
    outputs = []
    for head in (model.H_0, *(head for stage in model.H_k for head in stage)):
        head.register_forward_hook(lambda _, inputs, output: outputs.append(output))
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(torch.randn(4, 3, 8, 8))
    assert {output.dtype for output in outputs} == {torch.bfloat16}
    exact = torch.stack(outputs).double().sum(0)
    torch.testing.assert_close(logits.double(), exact, rtol=1e-5, atol=1e-5)


def test_resnest_is_linear_in_the_last_residual_representation():
    model = build_model(((1,), (4,)), "resnest", 3).eval()
    last = {}
    model.stage[0][0].register_forward_hook(lambda _m, _i, output: last.update(x=output))
    with torch.no_grad():
        logits = model(torch.randn(5, 3, 8, 8))
        assert torch.allclose(logits, model.linear(last["x"].mean((2, 3))), atol=1e-6)


def test_unknown_names_are_refused_with_the_choices():
    with pytest.raises(UserError, match=r"arch=resnet21: expected one of .*resnet20"):
        build_model("resnet21")
    with pytest.raises(UserError, match=r"variant=foo: expected one of standard"):
        build_model("resnet20", "foo")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"num_classes": -1}, "num_classes=-1: expected a whole number of at least 1"),
        ({"num_classes": 0}, "num_classes=0: expected a whole"),
        ({"num_classes": 2.5}, "num_classes=2.5: expected a whole"),
        ({"num_classes": "a"}, "num_classes=a: expected a whole"),
        ({"arch": ((1,), ("a",))}, "arch=.*: expected a name in conf/arch, or whole numbers"),
        ({"arch": (3, 16)}, "arch=.*: expected a name in conf/arch, or whole numbers"),
        ({"arch": ((1,),)}, "arch=.*: expected a name in conf/arch, or whole numbers"),
        ({"arch": None}, "arch=None: expected a name in conf/arch, or whole numbers"),
        ({"variant": 5}, "variant=5: expected one of standard"),
        ({"weights": 5}, "weights=5: expected the path of a file"),
    ],
)
def test_what_build_model_cannot_build_is_one_line(arguments, said):
    with pytest.raises(UserError, match=f"^{said}"):
        build_model(**{"arch": "resnet8"} | arguments)


def test_whole_numbers_may_be_those_of_numpy():
    model = build_model((np.array([1]), range(4, 5)), num_classes=np.int64(3))
    assert model.linear.out_features == 3
