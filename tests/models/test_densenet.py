import pytest
import torch
from torch import nn
from torch.nn import functional as F

from resnests.errors import UserError
from resnests.models import densenet
from resnests.models.densenet import DenseNet
from resnests.models.resnet import count_parameters

L40 = {"depth": 40, "growth": 12}
L100_BC = {"depth": 100, "growth": 12, "compression": 0.5, "bottleneck": True}


@pytest.mark.parametrize(
    ("values", "counts", "width"),
    [(L40, (1_019_722, 1_060_132), 448), (L100_BC, (769_162, 800_032), 342)],
)
def test_parameter_counts_of_the_official_densenets(values, counts, width):
    for classes, count in zip((10, 100), counts, strict=True):
        assert count_parameters(DenseNet(classes, **values)) == count
        bare = DenseNet(classes, **values, head="densenest")
        assert bare.linear.in_features == width
        assert count_parameters(bare) == count - 2 * width, "the last batch norm is left out"


def small(head: str, bottleneck: bool = False) -> DenseNet:
    torch.manual_seed(0)
    return DenseNet(5, 16 if not bottleneck else 22, 4, 0.5, bottleneck, head)


def plain(layer: nn.Module, pieces: list) -> torch.Tensor:
    """Compute a dense layer as the DenseNet paper has it."""
    x = layer.conv1(F.relu(layer.bn1(torch.cat(list(pieces), 1))))
    return x if layer.conv2 is None else layer.conv2(F.relu(layer.bn2(x)))


@pytest.mark.parametrize("bottleneck", [False, True])
@pytest.mark.parametrize("head", densenet.HEADS)
def test_outputs_gradients_and_statistics_are_those_of_the_plain_form(
    head, bottleneck, monkeypatch
):
    x, labels = torch.randn(6, 3, 16, 16), torch.arange(6) % 5
    results = []
    for forward in (densenet.DenseLayer.forward, plain):
        monkeypatch.setattr(densenet.DenseLayer, "forward", forward)
        model = small(head, bottleneck).to(memory_format=torch.channels_last)
        for _ in range(2):
            logits = model(x)
            F.cross_entropy(logits, labels).backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        results.append([logits, *gradients, *model.buffers()])
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(ours, theirs, atol=2e-5)


def kept_bytes(layers: int) -> int:
    """Return what autograd keeps of a forward pass outside the layers' own recomputation."""
    model = DenseNet(5, 4 + 3 * layers, 8)
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.update({t.data_ptr(): t.nbytes}) or t, lambda t: t
    ):
        logits = model(torch.randn(2, 3, 16, 16))
    assert logits.requires_grad
    return sum(kept.values()) - sum(p.nbytes for p in model.parameters() if p.data_ptr() in kept)


def test_memory_grows_linearly_with_depth(monkeypatch):
    growth = kept_bytes(16) / kept_bytes(8)
    assert growth < 2.2
    monkeypatch.setattr(densenet, "checkpoint", lambda work, *pieces, **_: work(*pieces))
    assert kept_bytes(16) / kept_bytes(8) > 1.4 * growth, "kept copies are quadratic"


def test_a_densenest_is_linear_in_the_features_of_its_last_block():
    model = small("densenest").double().eval()
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        pooled = torch.cat([piece.mean((2, 3)) for piece in model.last_features(x)], 1)
        assert torch.allclose(model(x), model.linear(pooled), atol=1e-12)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"depth": 41}, r"arch.depth=41: expected 4 \+ a multiple of 3"),
        ({"depth": 43, "bottleneck": True}, r"arch.depth=43: expected 4 \+ a multiple of 6"),
        ({"growth": 0}, "arch.growth=0: expected at least 1"),
        ({"compression": 1.5}, r"arch.compression=1.5: expected above 0"),
        ({"head": "resnest"}, "variant.head=resnest: expected standard or densenest"),
    ],
)
def test_what_cannot_be_is_one_line(values, said):
    with pytest.raises(UserError, match=said):
        DenseNet(10, **(L40 | values))
