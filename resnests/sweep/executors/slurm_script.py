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
LACKS = "cluster=slurm: its node "  # begins that of a job whose node lacks what all jobs need
_SCRIPT = """\
#!/bin/bash
resnests_refuse() {{ echo "{lacks}$SLURMD_NODENAME $1"; exit 1; }}
cd {here} || resnests_refuse "has no "{no_folder}
{exports}
{setup}
[ -x {python} ] || resnests_refuse "has no "{python}
resnests_said=$({python} -Sc "" 2>&1) || {{
    resnests_code=$? resnests_said=$(tail -n 1 <<< "$resnests_said")
    resnests_refuse "cannot start "{python}": exit status $resnests_code ($resnests_said)"
}}
exec {python} -c {program}
"""
_PROGRAM = """\
import importlib.util, sys
try:
    from resnests.sweep.executors.slurm_job import main
    if importlib.util.find_spec("torch") is None:
        raise ImportError("No module named 'torch'")
except Exception as error:  # a SyntaxError, too, where its Python is an old one
    said = str(error).partition("\\n")[0]
    sys.exit(f"{lacks}cannot train: {{sys.executable}}: {{said}}")
sys.exit(main())"""
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
    """Return the script: the lines of `setup`, up to the first that fails, and the training.

    What the node lacks is its last line. Nobody could tell it by the exit status, which is that of
    a job which was killed, too.
    """
    here = os.getcwd()
    variables = submission.specs.environment()
    return _SCRIPT.format(
        lacks=LACKS,
        here=shlex.quote(here),
        no_folder=shlex.quote(f"directory {here}"),
        exports="\n".join(f"export {key}={shlex.quote(text)}" for key, text in variables.items()),
        setup=_setup_script(submission, setup, here),
        python=shlex.quote(sys.executable),
        program=shlex.quote(_PROGRAM.format(lacks=LACKS)),
    )


def _setup_script(submission: Submission, setup: Sequence[str], here: str) -> str:
    """Return what runs the lines of `setup`, and comes back to the folder `here`."""
    if not setup:
        return ""
    log = f"{shlex.quote(str(submission.folder))}/${{SLURM_ARRAY_TASK_ID:-0}}.log"
    script = [f"resnests_log={log}", _TRAP]
    script += [_LINE.format(line=shlex.quote(line)) for line in setup]
    return "\n".join([*script, "trap - EXIT", f"cd {shlex.quote(here)} || exit"])
