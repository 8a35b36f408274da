"""Build what tests of devices share: a driver of NVIDIA's (the stand-in of nvml.c), and notes."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pynvml
import pytest

from resnests.sweep import cards
from resnests.sweep.aside import Aside


@pytest.fixture(scope="session")
def nvml_folder(tmp_path_factory) -> Path:
    """Return a folder for LD_LIBRARY_PATH, with the stand-in."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    folder = tmp_path_factory.mktemp("nvml")
    source = Path(__file__).with_name("nvml.c")
    library = folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    return folder


@pytest.fixture
def driver(nvml_folder, monkeypatch):
    """Return what sets which cards there are, in the words of nvml.c."""
    library = ctypes.CDLL(str(nvml_folder / "libnvidia-ml.so.1"))
    monkeypatch.setattr(pynvml, "nvmlLib", library)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    cards.warn.cache_clear()
    return lambda words: monkeypatch.setenv("FAKE_NVML", words)


@pytest.fixture
def aside(tmp_path) -> Aside:
    """Return the notes of a sweep that has set nothing aside."""
    (tmp_path / "sweep").mkdir()
    return Aside(tmp_path / "sweep")
