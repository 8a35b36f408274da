"""Say what benchmarks.gpu_session runs and measures, by its parts."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING

from resnests.sweep.mps import PROGRAM, environment

if TYPE_CHECKING:
    from benchmarks.gpu_session import Session

SHARED_STEPS = 400  # or those that end first would flatter those that then have the card alone
STARTS = "import torch; from resnests.sweep.cards import visible_cards; print(visible_cards()); "
STARTS += "print(torch.__version__, torch.cuda.is_available(), torch.cuda.device_count())"
# Start what is given, and interrupt it once two epochs are in its history.
STOP = """
import subprocess, sys, time
from pathlib import Path
run = subprocess.Popen([sys.executable, "run.py", *sys.argv[2:]])
while run.poll() is None:
    files = Path(sys.argv[1]).glob("*/*/*/*/seed=70/history.csv")
    if any(len(file.read_text().splitlines()) > 2 for file in files):
        run.terminate()
        break
    time.sleep(0.05)
sys.exit(run.wait() != 130)
"""
SAME = """
import sys, torch
from pathlib import Path
runs = [next(Path(folder).glob("*/*/*/*/seed=70")) for folder in sys.argv[1:]]
assert "resuming in epoch" in (runs[1] / "run.log").read_text(), "it was not resumed"
one, other = (torch.load(run / "model.pt", weights_only=True) for run in runs)
sys.exit(any(not torch.equal(one[name], other[name]) for name in one))
"""


def run_options(session: Session, folder: str = "runs") -> list[str]:
    """Return the words of a small training on the device of the session."""
    tiny = ["dataset.train_limit=64", "dataset.test_limit=32", "arch=resnet8"]
    words = [
        "dataset=digits",
        "arch=resnet20",
        "trainer.epochs=2",
        f"runs_dir={session.out / folder}",
    ]
    return [*words, f"trainer.device={session.device}", *(tiny if session.smoke else [])]


def what(session: Session) -> None:
    """Print which card, driver and torch this is, and whether NVML and torch agree."""
    if not session.smoke:
        columns = "name,uuid,driver_version,compute_mode,mig.mode.current,memory.used"
        session.command("what: card", ["nvidia-smi", f"--query-gpu={columns}", "--format=csv"], 30)
    session.python("what: torch and NVML", "-c", STARTS, limit=60)


def sweep(session: Session) -> None:
    """Whether the product works at all: the first lines that ever ran on a GPU."""
    words = run_options(session)
    share = [] if session.smoke else ["devices.runs_per_gpu=4"]
    many = "seed=0,1" if session.smoke else "seed=range(8)"
    session.python("sweep: one run", "run.py", *words, "seed=90")
    session.python("sweep: several runs, forked", "run.py", "-m", *words, many, *share)
    heads = (
        "variant=standard,a_resnest"
        if session.smoke
        else "variant=standard,resnest,bn_resnest,a_resnest"
    )
    session.python("sweep: bf16", "run.py", "-m", *words, "trainer.precision=bf16", heads, *share)
    keep = ["seed=92", "trainer.keep_epochs=[0,1]", "variant=resnest,a_resnest"]
    solves = ["task=analyze", "analysis.train=true", "analysis.l2_path=[0.01]"]
    session.python("sweep: analysis", "run.py", "-m", *words, *keep, *solves)
    more = ["seed=93", "pipeline.memory_gb=0", "trainer.ema=0.9", "metrics=[f1,ece]"]
    session.python("sweep: streaming, EMA, metrics", "run.py", *words, *more)
    if session.smoke:
        return
    dense = ["arch=densenest40_12", "variant=densenest", "optimizer=adamw", "optimizer.clip_norm=1"]
    session.python("sweep: densenest, adamw", "run.py", *words, *dense, "trainer.epochs=1")
    session.python("sweep: compiled", "run.py", *words, "seed=91", "trainer.compile=true")


def tests(session: Session) -> None:
    """The tests that need a GPU; with --smoke they are collected."""
    more = ["--collect-only"] if session.smoke else []
    files = ["tests/training", "tests/data"]
    session.python("tests: of a GPU", "-m", "pytest", "-q", "-m", "gpu", *files, *more, limit=240)


def steps(session: Session) -> None:
    """Steps of the four networks, in every way that a default could choose."""
    for arch in session.archs:  # the order of what decides most
        session.measure(f"steps: {arch}", arch=arch, extras=True)
    for arch in session.archs:
        for mode in ("graph", "plain"):
            session.measure(f"{mode}: {arch}", arch=arch, mode=mode, steps=50)
        session.measure(f"layout: {arch}", arch=arch, channels_last=False)
        for precision in () if session.smoke else ("fp32", "tf32"):
            for layout in (True, False):
                spec = {"precision": precision, "channels_last": layout, "steps": 40}
                session.measure(f"layout: {arch}", arch=arch, **spec)


def share(session: Session) -> None:
    """Several runs on a card: by streams of a process, by turns, and at once under MPS.

    All are steps of a training, each a graph of its own, so that their images/s can be compared.
    """
    for arch in session.archs[:2]:
        session.measure("share: alone", arch=arch, steps=SHARED_STEPS)
        for count in (2,) if session.smoke else (2, 4, 8):
            session.measure("share: streams", arch=arch, streams=count, steps=SHARED_STEPS)
            session.measure("share: processes", count, arch=arch, steps=SHARED_STEPS)
    words = [*run_options(session), "trainer.precision=bf16", "devices.runs_per_gpu=8"]
    if session.smoke or not shutil.which(PROGRAM):
        return
    for seeds, mps in (("seed=range(20,28)", "false"), ("seed=range(30,38)", "true")):
        what = f"share: a sweep with devices.mps={mps}"
        session.python(what, "run.py", "-m", *words, seeds, f"devices.mps={mps}")
    folder, before = session.out / "mps", session.environment
    folder.mkdir(exist_ok=True)
    session.environment = before | environment(str(folder))
    try:
        if session.command("share: MPS starts", [PROGRAM, "-d"], 20):
            for arch in session.archs[:2]:
                for count in (4, 8):
                    what = "share: processes under MPS"
                    session.measure(what, count, arch=arch, steps=SHARED_STEPS)
    finally:
        session.command("share: MPS stops", ["sh", "-c", f"echo quit | {PROGRAM}"], 20)
        session.environment = before


def compiled(session: Session) -> None:
    """What torch.compile gains, and what it takes until the first step."""
    for arch in session.archs:
        session.measure(f"compile: {arch}", limit=200, arch=arch, compile=True)


def bits(session: Session) -> None:
    """Whether a deterministic run that was stopped and resumed has the bits of one that was not."""
    epochs = f"trainer.epochs={40 if session.smoke else 200}"
    more = ["seed=70", "trainer.deterministic=true", epochs]
    whole, resumed = (run_options(session, name) + more for name in ("bits-whole", "bits-resumed"))
    folders = [str(session.out / name) for name in ("bits-whole", "bits-resumed")]
    session.python("bits: whole", "run.py", *whole)
    session.python("bits: stopped", "-c", STOP, folders[1], *resumed)
    session.python("bits: resumed", "run.py", *resumed)
    session.python("bits: the same", "-c", SAME, *folders)


PARTS: dict[str, Callable[[Session], None]] = {
    "what": what,
    "sweep": sweep,
    "tests": tests,
    "steps": steps,
    "share": share,
    "compile": compiled,
    "bits": bits,
}
