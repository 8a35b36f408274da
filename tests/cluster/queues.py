"""Put stand-ins of Slurm's commands on the PATH, whose answers are files that a test writes."""

from __future__ import annotations

import os
from pathlib import Path

COMMANDS = {
    "squeue": 'echo "$@" > squeue.words; env > squeue.env; cat queue',
    "scancel": 'echo "$@" >> scancel.words; env > scancel.env',
    "scontrol": """\
echo "$@" >> scontrol.words
echo "MaxArraySize = 1001"
echo "MinJobAge = 300 sec\"""",
    # As many jobs as are in the file `room`, each of which takes a place.
    "sbatch": """\
env > sbatch.env
echo "$@" >> sbatch.words
last=$(echo "$@" | sed -n 's/.*--array=0-\\([0-9]*\\).*/\\1/p')
last=${last:-0}
room=$(cat room)
if [ "$last" -ge "$room" ]; then
    echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2
    exit 1
fi
echo $((room - last - 1)) > room
number=$(($(cat number) + 1))
echo $number > number
cat > script.$number
echo $number""",
}


class StandIn:
    """Plays a Slurm by files in a folder: `queue` is what squeue prints."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "bin").mkdir(parents=True)
        for name, text in {"queue": "", "room": "1000", "number": "16"}.items():
            (folder / name).write_text(text)
        for name, text in COMMANDS.items():
            command = folder / "bin" / name
            command.write_text(f"#!/bin/sh\ncd {folder}\n{text}\n")
            command.chmod(0o755)
        self.path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"

    def show(self, *lines: str) -> None:
        """Have squeue print these lines: name|array|task|state|node|reason."""
        (self.folder / "queue").write_text("".join(f"{line}\n" for line in lines))

    def words(self, command: str) -> str:
        """Return what a command was called with, a line a call."""
        return (self.folder / f"{command}.words").read_text()

    def environment(self, command: str) -> dict[str, str]:
        """Return the variables that a command saw at its last call."""
        lines = (self.folder / f"{command}.env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)
