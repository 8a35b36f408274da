import pytest
import torch
from torch.nn import functional as F

from resnests.errors import UserError
from resnests.models.single_stage import DenseNEst, ResNEst, SingleStage, as_wide_resnest


def trained(model, steps: int):
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    x, y = torch.randn(64, 7, dtype=torch.float64), torch.arange(64) % 4
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("steps", [0, 100])
def test_a_densenest_is_a_wide_resnest(steps):
    torch.manual_seed(0)
    dense = trained(DenseNEst(7, (3, 5, 2), 4).double(), steps)
    wide = as_wide_resnest(dense)
    assert wide.W_0.out_features == 7 + 3 + 5 + 2
    x = torch.randn(100, 7, dtype=torch.float64)
    assert (wide(x) - dense(x)).abs().max() < 1e-12
    stacked = torch.cat(wide.maps()[:-1], 1)
    assert torch.linalg.matrix_rank(stacked) == stacked.shape[1], "wide with bottleneck blocks"


def test_a_resnest_is_the_recursion_of_the_paper():
    torch.manual_seed(0)
    model, x = ResNEst(7, 6, (3, 5), 4), torch.randn(9, 7)
    representation = model.W_0(x)
    for inner, outer in zip(model.G, model.W, strict=True):
        representation = representation + outer(F.relu(inner(representation)))
    assert torch.allclose(model(x), model.linear(representation), atol=1e-6)


@pytest.mark.parametrize(("head", "width"), [("resnest", 12), ("densenest", None)])
def test_images_become_grey_means(head, width):
    model = SingleStage(3, pixels=8, depth=2, features=5, width=width, head=head)
    scans = torch.rand(4, 1, 8, 8)
    enlarged = scans.repeat_interleave(4, 2).repeat_interleave(4, 3).expand(4, 3, 32, 32)
    assert torch.allclose(model.inputs(enlarged), scans.flatten(1), atol=1e-6)
    assert model(enlarged).shape == (4, 3)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"width": None}, "arch.width=None: expected at least 1"),
        ({"depth": 0}, "arch.depth=0: expected at least 1"),
        ({"head": "densenest"}, "arch.width=5: expected null"),
        ({"head": "standard"}, "variant.head=standard: expected resnest or densenest"),
    ],
)
def test_what_cannot_be_is_one_line(values, said):
    with pytest.raises(UserError, match=said):
        SingleStage(
            **({"num_classes": 3, "pixels": 8, "depth": 2, "features": 4, "width": 5} | values)
        )
