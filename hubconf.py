"""Entry points of torch.hub: torch.hub.load("<owner>/<repository>", "build_model", "resnet20")."""

dependencies = ["torch", "numpy", "hydra", "omegaconf", "filelock"]

from resnests.models.resnet import build_model as build_model
from resnests.sharing.load import load_model as load_model
