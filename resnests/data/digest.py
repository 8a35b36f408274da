"""What tells one's own images from others: a digest of the files that hold them. No torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

from resnests.config.parts import Dataset
from resnests.config.targets import update_digest
from resnests.errors import UserError


def dataset_digest(dataset: Dataset) -> str | None:
    """Return sixteen hexadecimal digits of the names and contents of the images of
    dataset=images, None for sources that have checksums and for code of the user's.
    """
    if dataset.source != "images":
        return None
    root = Path(dataset.root)
    files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
    if not files:
        raise UserError(f"dataset.root={root}: expected a folder with images, or an .npz file")
    digest = hashlib.sha256()
    for path in files:
        name = "" if path == root else path.relative_to(root).as_posix()
        digest.update(f"{name}\0{path.stat().st_size}\0".encode())
        update_digest(digest, path)
    return digest.hexdigest()[:16]
