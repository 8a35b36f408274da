"""Write the script of an array's jobs. No torch.

It runs under bash, as the lines of cluster.setup do what they do in a user's own shell: on Debian
/bin/sh has no `source`, and does not know the functions that bash exports, such as `module`.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence

from resnests.sweep.executors.submission import Submission

SETUP = "cluster.setup: "  # begins the last line of a job that its setup has ended
# Each line is evaluated as it stands, so that what it sets stays set; `exit` in one is caught too.
_TRAP = r"""
resnests_failed() {
    code=$?
    said=$(tail -c +$((resnests_size + 1)) "$resnests_log" | grep -v '^ *$' | tail -n 1)
    echo "cluster.setup: $resnests_line: exit status $code${said:+ ($said)}"
    exit $((code ? code : 1))
}
trap resnests_failed EXIT
"""
_LINE = """\
resnests_line={line}; resnests_size=$(wc -c < "$resnests_log")
eval "$resnests_line" || exit"""


def job_script(submission: Submission, setup: Sequence[str]) -> str:
    """Return the script: the lines of `setup`, up to the first that fails, and the training."""
    here = f"cd {shlex.quote(os.getcwd())} || exit 1"
    variables = submission.specs.environment()
    script = ["#!/bin/bash", here]
    script += [f"export {key}={shlex.quote(text)}" for key, text in variables.items()]
    if setup:
        log = f"{shlex.quote(str(submission.folder))}/$SLURM_ARRAY_TASK_ID.log"
        script += [f"resnests_log={log}", _TRAP]
        script += [_LINE.format(line=shlex.quote(line)) for line in setup]
        script += ["trap - EXIT", here]
    script += [f"exec {shlex.quote(sys.executable)} -m resnests.sweep.executors.slurm_job"]
    return "\n".join(script) + "\n"
