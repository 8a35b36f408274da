"""What of sbatch's options a cluster takes, and what it refuses."""

import pytest
from helpers import REPOSITORY, tiny

from resnests.config.cluster import Cluster
from resnests.errors import UserError


def cluster(**values) -> Cluster:
    return Cluster(**{"name": "slurm", "runs_per_job": 1, "grace": 90, "detach": False} | values)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--job-name=mine", "no --job-name, as the sweep finds its jobs by their name"),
        ("-Jmine", "no --job-name"),
        ("--job=mine", "no --job-name"),
        ("--array=0-3", "no --array, as the sweep numbers its jobs; cluster.jobs"),
        ("-a", "no --array"),
        ("--nodes=2", "no --nodes, as a job is on one node"),
        ("-N2", "no --nodes"),
        ("--ntasks", "no --ntasks, as a job is one task; cluster.cpus"),
        ("-n2", "no --ntasks"),
        ("--output=x", "no --output"),
        ("-ox", "no --output"),
        ("--parsable", "no --parsable"),
        ("--wait", "no --wait, as cluster.detach"),
        ("-W", "no --wait"),
        ("--signal=USR1", "no --signal, as cluster.grace"),
        ("-Mother", "no --clusters"),
        ("--time=1", "no --time, as cluster.time is the limit"),
        ("-t1", "no --time"),
        ("--dependency=afterok:1", "no --dependency"),
        ("-dsingleton", "no --dependency"),
        ("--quiet", "no --quiet"),
        ("-Q", "no --quiet"),
    ],
)
def test_options_on_which_a_sweep_relies_are_refused(option, said):
    with pytest.raises(UserError) as caught:
        cluster(options=["--nice", option])
    assert str(caught.value).startswith(f"cluster.options={option}: expected {said}")


def test_options_that_a_sweep_does_not_need_are_passed_on():
    options = ["--nodelist=n1", "--ntasks-per-node=1", "--mail-type=END", "--exclude", "n2", "-x"]
    assert cluster(options=options).options == options


def test_options_are_words_or_one_string_as_a_shell_takes_it():
    text = "--constraint=a100 --comment='two words'"
    assert cluster(options=text).options == ["--constraint=a100", "--comment=two words"]
    assert cluster().options == []
    typed = f'cluster.options="{text}"'
    assert tiny("cluster=slurm", typed).cluster.options == cluster(options=text).options
    for wrong in ("--comment='open", [1], {"constraint": "a100"}):
        with pytest.raises(UserError, match=r"cluster.options=.*: expected words such as"):
            cluster(options=wrong)


def test_what_is_documented_of_options_can_be_typed():
    documented = (REPOSITORY / "docs" / "cluster.md").read_text().split("`")[1::2]
    examples = [text[1:-1] for text in documented if text.startswith("'cluster.")]
    assert len(examples) == 4
    for example in examples:
        there = tiny("cluster=slurm", example).cluster
        assert there.options or there.setup


@pytest.mark.parametrize("time", ["1m", "1", "0:01:30", "1:30", "0-0:1"])
def test_a_job_is_not_signalled_before_it_begins(time):
    with pytest.raises(UserError, match=r"cluster.grace=90: expected less than cluster.time="):
        cluster(time=time)


@pytest.mark.parametrize("time", [None, "0", "2m", "1:31", "0:01:31", "1-0", "0-1:0", "4h"])
def test_a_grace_within_the_time_limit_is_taken(time):
    assert cluster(time=time).grace == 90
