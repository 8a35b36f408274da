"""Digest the content of a data set: the same at another path, another one when edited.

python -m resnests.data.digest '{"name": "leaves", "source": "images", ...}'     # prints the digest
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from resnests.config.parts import Dataset
from resnests.data.folder import Folder
from resnests.data.splits import read
from resnests.errors import UserError


def dataset_digest(dataset: Dataset) -> str | None:
    """Return sixteen hexadecimal digits of what a run would load, None for data with checksums.

    All that there is counts, whatever limits and splits are taken of it: names of classes, labels,
    and the bytes of the files or arrays. Nothing is decoded, so that it takes about as long as
    reading the files. Raises a UserError. A user's own callable runs in a process of its own, as
    it may import torch.
    """
    if not dataset.is_own:
        return None
    if dataset.target is None:
        return Folder().digest(dataset)
    here = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-m", __name__, json.dumps(asdict(dataset))],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"]
        raise UserError(said[-1])
    return done.stdout.split()[-1]


if __name__ == "__main__":
    try:
        print("", read(Dataset(**json.loads(sys.argv[1]))).digest)
    except UserError as problem:
        sys.exit(str(problem))
