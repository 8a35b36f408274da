"""Hurt sweeps at random instants; what they leave in the end must be that of an undisturbed sweep.

    python tests/faults.py --faults 60      # the long form: faults injected, survived, results lost
    python tests/faults.py --faults 30 --launcher slurm     # or ray: on a cluster of one's own
    python tests/faults.py --faults 30 --own    # a network and images of one's own, edited, too

A fault is SIGKILL of a training, of the launcher's process above it, of the fork server, of the
whole sweep; a flipped bit in or the loss of the end of a checkpoint or record; a second sweep over
the same grid at once, also one that is interrupted, or after the lock of a run in training was
deleted, or one of another user (where root) over the same devices; the directory of a run removed,
or a folder in which nobody may write for some seconds; an error full of markup; a device on which
everything fails; source of a network or an image that is another one for some seconds; on a cluster
also a cancelled job, a lost node and the end of Ray's head. On Slurm the partition is hidden, and
the shell of the sweeps full of variables of Slurm's. After the faults the same command is given
until it reports success, and every file is compared with the undisturbed sweep.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import injections
import psutil
import torch
from helpers import history
from sweeps import OWN, Leases, Sweep

from resnests.models.weights import read_torch
from resnests.runs.directory import RunDirectory, find_runs

SECOND_SWEEPS: list[Sweep] = []
BOOM = "[/opt/pytorch/x.cc:3] boom"
OTHER_USER = 54321
# An account without rights here, but for reading: python may lie in the home of root.
AS_OTHER_USER = (
    f"setpriv --reuid {OTHER_USER} --regid {OTHER_USER} --clear-groups "
    "--inh-caps=+dac_read_search --ambient-caps=+dac_read_search"
).split()
RUNS = 4  # of the grid of a Sweep


def kill_training(sweep: Sweep, _folder: Path) -> bool:
    return _kill_one(sweep.children("training"))


def kill_worker(sweep: Sweep, _folder: Path) -> bool:
    return _kill_one(sweep.children("worker"))


def kill_server(sweep: Sweep, _folder: Path) -> bool:
    return _kill_one(sweep.children("server"))


def kill_sweep(sweep: Sweep, _folder: Path) -> bool:
    sweep.process.kill()
    return True


def interrupt_sweep(sweep: Sweep, _folder: Path) -> bool:
    sweep.process.send_signal(random.choice((signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)))
    return True


def second_sweep(_sweep: Sweep, folder: Path) -> bool:
    SECOND_SWEEPS.append(Sweep(folder))
    return True


def interrupted_second_sweep(_sweep: Sweep, folder: Path) -> bool:
    """Interrupt a second sweep while the first one trains, or waits for its devices."""
    second = Sweep(folder)
    time.sleep(random.uniform(0.5, 4))
    second.process.send_signal(signal.SIGINT)
    SECOND_SWEEPS.append(second)
    return True


def remove_folder(_sweep: Sweep, folder: Path) -> bool:
    """Remove the directory of a run, whoever of this sweep works there."""
    runs = list(find_runs(folder / "runs"))
    if not runs or any(second.process.poll() is None for second in SECOND_SWEEPS):
        return False  # another sweep may begin it anew while its process still ends
    shutil.rmtree(random.choice(runs).path, ignore_errors=True)
    return True


def lock_folder(_sweep: Sweep, folder: Path) -> bool:
    """Let nobody write into a folder of the sweep's for some seconds, not even root."""
    places = [folder / "runs", *(run.path for run in find_runs(folder / "runs"))]
    place = random.choice(places)
    if not place.is_dir():
        return False
    subprocess.run(["chattr", "+i", str(place)], check=True)
    time.sleep(random.uniform(1, 4))
    subprocess.run(["chattr", "-i", str(place)], check=True)
    return True


def edit_source(_sweep: Sweep, folder: Path) -> bool:
    """Edit the source of the network for some seconds: what starts meanwhile must not train."""
    return _edit(folder / "own" / "dropping.py", lambda before: before + b"# edited\n")


def edit_image(_sweep: Sweep, folder: Path) -> bool:
    """Put an image in the place of another one for some seconds, which must not train either."""
    one, other = random.sample(sorted((folder / "own" / "images").rglob("*.png")), 2)
    return one.read_bytes() != other.read_bytes() and _edit(one, lambda _: other.read_bytes())


def _edit(file: Path, edited: Callable[[bytes], bytes]) -> bool:
    before = file.read_bytes()
    file.write_bytes(edited(before))
    time.sleep(random.uniform(1, 4))
    file.write_bytes(before)
    return True


def other_users_sweep(_sweep: Sweep, folder: Path) -> bool:
    """Start the sweep of another user over a grid of their own, on the same devices."""
    theirs = folder / f"user-{len(list(folder.glob('user-*')))}"
    theirs.mkdir()
    os.chown(theirs, OTHER_USER, OTHER_USER)
    SECOND_SWEEPS.append(Sweep(theirs, prefix=AS_OTHER_USER))
    return True


def delete_lock(_sweep: Sweep, folder: Path) -> bool:
    """Delete the lock of a run in training, and start a second sweep, which must leave it alone."""
    for run in find_runs(folder / "runs"):
        if run.status() == "running" and run.is_locked():
            run.lock_file.unlink(missing_ok=True)
            SECOND_SWEEPS.append(Sweep(folder))
            return True
    return False


def error_with_markup(_sweep: Sweep, folder: Path) -> bool:
    """Have the next epoch of a training fail with an error: see broken/sitecustomize.py."""
    (folder / "boom").touch()
    return True


def dying_device(_sweep: Sweep, folder: Path) -> bool:
    """Have every training on one of the cores fail, as on a broken card, until the sweep ends."""
    core = random.choice(sorted(os.sched_getaffinity(0)))
    (folder / "dying").write_text(f"cpu-{core}")
    return True


def damage_file(_sweep: Sweep, folder: Path) -> bool:
    """Flip a bit of, or cut, a checkpoint or record of a run that nobody trains just now."""
    runs = [
        run
        for run in find_runs(folder / "runs")
        if run.status() != "complete" and not run.is_locked()
    ]
    names = [
        path
        for run in runs
        for name in ("checkpoint.pt", "record.json")
        if (path := run.path / name).exists()
    ]
    if not names:
        return False
    path = random.choice(names)
    content = bytearray(path.read_bytes())
    if random.random() < 0.5:
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    else:
        content = content[: random.randrange(len(content))]
    path.write_bytes(bytes(content))
    return True


def _kill_one(processes: list[psutil.Process]) -> bool:
    if not processes:
        return False
    try:
        random.choice(processes).send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return False
    return True


FAULTS = {  # "worker" is the process that a launcher starts a training from
    "training killed": kill_training,
    "worker killed": kill_worker,
    "fork server killed": kill_server,
    "sweep killed": kill_sweep,
    "sweep interrupted": interrupt_sweep,
    "second sweep": second_sweep,
    "second sweep interrupted": interrupted_second_sweep,
    "directory of a run removed": remove_folder,
    "nobody may write": lock_folder,
    "another user's sweep": other_users_sweep,
    "lock deleted": delete_lock,
    "error with markup": error_with_markup,
    "device dies": dying_device,
    "file damaged": damage_file,
}
ONE_MACHINES = ("fork server killed", "device dies", "another user's sweep", "lock deleted")
if os.getuid() != 0 or not shutil.which("setpriv"):  # what becoming another user takes
    del FAULTS["another user's sweep"]
if os.getuid() != 0 or not shutil.which("chattr"):
    del FAULTS["nobody may write"]


def hurt_until(folder: Path, faults: list[str]) -> None:
    """Sweep again and again, with one of `faults` at a random instant of each sweep, on a cluster
    with as many as it lives to see, until all were injected. Raise an error for one that hurt
    nothing in two sweeps, as the second one began anew.
    """
    misses = 0
    while faults:
        sweep = Sweep(folder)
        time.sleep(random.uniform(1.5, 9))
        hurt = False
        while faults and _inject(FAULTS[faults[0]], sweep, folder):
            hurt = True
            print(f"{faults.pop(0)}; {len(faults)} faults to go", flush=True)
            if not Sweep.cluster:
                break
            time.sleep(random.uniform(1, 6))
        sweep.wait()
        misses = 0 if hurt else misses + 1
        if misses == 2:
            raise RuntimeError(f"{faults[0]}: two sweeps had nothing that it hurts")
        (folder / "dying").unlink(missing_ok=True)
        for run in [] if hurt else find_runs(folder / "runs"):  # all done before: it starts anew
            if not run.is_locked():
                run.clear()


def _inject(fault, sweep: Sweep, folder: Path) -> bool:
    """Inject `fault` as soon as there is what it hurts; return whether it was."""
    while sweep.process.poll() is None:
        if fault(sweep, folder):
            return True
        if fault is damage_file and any(
            r.status() == "running" for r in find_runs(folder / "runs")
        ):
            return kill_sweep(sweep, folder) and _after(fault, sweep, folder)
        time.sleep(random.uniform(0.1, 2))
    return False


def _after(fault, sweep: Sweep, folder: Path) -> bool:
    """Damage files once the trainings of a killed sweep are gone."""
    sweep.process.wait()
    if Sweep.cluster:
        injections.stop_all_jobs()
    deadline = time.monotonic() + 30
    while (
        any(run.is_locked() for run in find_runs(folder / "runs")) and time.monotonic() < deadline
    ):
        time.sleep(0.1)
    return fault(sweep, folder)


def finish(folder: Path, tries: int = 6) -> int:
    """Give the same command until it reports success; return how often it was given."""
    while SECOND_SWEEPS:
        SECOND_SWEEPS.pop().wait()
    for count in range(1, tries + 1):
        if Sweep(folder).wait() == 0:
            return count
    raise AssertionError(
        f"not complete after {tries} commands: {(folder / 'sweep.log').read_text()[-2000:]}"
    )


def differences(folder: Path, reference: Path) -> list[str]:
    """Return what is not the same to the bit as in the undisturbed sweep, or not whole."""
    found = []
    expected = {run.path.relative_to(reference): run.path for run in find_runs(reference / "runs")}
    assert len(expected) == RUNS
    log = (folder / "sweep.log").read_text()
    found += [f"error shown as: {line}" for line in log.splitlines() if not _is_shown_well(line)]
    for place, path in expected.items():
        mine = folder / place
        if RunDirectory(mine).status() != "complete":
            found.append(f"{place}: not complete")
            continue
        one, other = read_torch(mine / "model.pt"), read_torch(path / "model.pt")
        if not all(torch.equal(one[name], other[name]) for name in other):
            found.append(f"{place}: other weights")
        if history(mine) != history(path):
            found.append(f"{place}: another history")
        found += [f"{place}: {left.name} is left" for left in mine.glob(".*.tmp")]
    return found


def _is_shown_well(line: str) -> bool:
    return "MarkupError" not in line and ("boom" not in line or BOOM in line)


def campaign(
    folder: Path, faults: list[str], cluster: tuple[str, ...] = ()
) -> tuple[list[str], list, int]:
    """Return differences, doubly leased devices, and how many commands it took after `faults`."""
    hurt, reference = folder / "hurt", folder / "reference"
    hurt.mkdir(parents=True)
    reference.mkdir()
    assert Sweep(reference).wait() == 0
    Sweep.cluster = cluster
    watch = Leases(hurt)
    watch.start()
    hurt_until(hurt, list(faults))
    commands = finish(hurt)
    watch.over.set()
    grids = [hurt, *hurt.glob("user-*")]
    lost = [line for grid in grids for line in differences(grid, reference)]
    return lost, watch.doubled, commands


def long_enough(folder: Path) -> int:
    """Return epochs that take some four seconds here, so that trainings live to see faults."""
    folder.mkdir()
    assert Sweep(folder).wait() == 0
    seconds = [run.read_record().seconds for run in find_runs(folder / "runs")]
    return max(Sweep.epochs, round(Sweep.epochs * 4 / min(seconds)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--launcher", choices=("slurm", "ray"))
    parser.add_argument("--own", action="store_true", help="train a user's own network and images")
    options = parser.parse_args()
    if options.own:
        Sweep.own = OWN
        FAULTS["source edited for a moment"] = edit_source
        FAULTS["image changed for a moment"] = edit_image
    random.seed(options.seed)
    if options.launcher:
        for name in ONE_MACHINES:
            FAULTS.pop(name, None)
        FAULTS.update(injections.FAULTS[options.launcher])
    faults = [random.choice(list(FAULTS)) for _ in range(options.faults)]
    started = time.monotonic()
    cluster = injections.cluster(options.launcher) if options.launcher else nullcontext()
    with tempfile.TemporaryDirectory() as folder, cluster:
        os.environ.setdefault("RESNESTS_LOCK_DIR", str(Path(folder) / "slots"))
        Sweep.epochs = long_enough(Path(folder) / "timed")
        overrides = injections.OVERRIDES.get(options.launcher, ())
        Sweep.shell = injections.SHELL if options.launcher == "slurm" else {}
        lost, doubled, commands = campaign(Path(folder), faults, overrides)
    for name in FAULTS:
        print(f"{faults.count(name):4} x {name}")
    seconds = time.monotonic() - started
    print(f"{len(faults)} faults injected in {seconds:.0f} s, then {commands} more command(s)")
    print(f"{RUNS} results compared with those of an undisturbed sweep, and those of other users")
    print(
        f"{len(lost)} results lost or different, {len(doubled)} devices or directories doubly held"
    )
    for line in [*lost, *map(str, doubled)]:
        print(line)
    return 1 if lost or doubled else 0


if __name__ == "__main__":
    sys.exit(main())
