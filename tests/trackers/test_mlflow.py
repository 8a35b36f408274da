"""MLflow with its own sqlite store, and its own server and page."""

import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from curves import EPOCHS, Training, measured
from helpers import REPOSITORY

pytest.importorskip("mlflow", reason="needs resnests[mlflow]")
pytest.importorskip("sqlalchemy", reason="needs resnests[mlflow]")

from mlflow import MlflowClient

from resnests.trackers.mlflow import make_store

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),  # its first import and its tables take long on a busy machine
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*unclosed database:ResourceWarning"),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Return (uri, folder) of a run that was interrupted, resumed, and sent again at the end."""
    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder}/mlflow.db"

    settings = {"_target_": "resnests.trackers.mlflow.MLflow", "uri": uri, "experiment": None}
    settings["artifacts"] = str(folder / "artifacts")
    training = Training(folder / "sweep_of_mine", "mlflow", settings)
    training.sync(0, end="interrupted")  # in its first epoch
    training.sync(1, 2, end="interrupted")
    training.sync(2, 3)
    training.sync(3, EPOCHS, end="complete")
    training.sync(EPOCHS, end="complete")
    training.start_afresh()
    training.sync(1)
    return uri, folder


def test_the_store_has_a_resumed_run_once_and_whole(store):
    client = MlflowClient(tracking_uri=store[0])
    experiment = client.get_experiment_by_name("sweep_of_mine")
    runs = client.search_runs([experiment.experiment_id])
    by_status = {run.info.status: run for run in runs}
    assert len(runs) == len(by_status) == 2, "afresh is another run, and nothing else is"
    assert "RUNNING" in by_status
    run = by_status["FINISHED"]
    for name in ("train_loss", "test_accuracy", "lr"):
        history = client.get_metric_history(run.info.run_id, name)
        found = [(metric.step, pytest.approx(metric.value)) for metric in history]
        assert sorted(found, key=lambda pair: pair[0]) == [*measured(name).items()]
    assert len(client.get_metric_history(run.info.run_id, "final/test_accuracy")) == 1
    assert run.data.params["optimizer.lr"] == "0.1"
    assert run.data.tags["seed"] == "0"
    assert [file.path for file in client.list_artifacts(run.info.run_id, "figures")] == [
        "figures/curves.png"
    ]


def test_a_process_that_is_killed_while_it_makes_the_store_leaves_none(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    making = f"from resnests.trackers.mlflow import make_store; make_store({uri!r})"
    process = subprocess.Popen([sys.executable, "-c", making], cwd=REPOSITORY)
    while not any(file.stat().st_size for file in tmp_path.glob(".mlflow-*/*")):
        assert process.poll() is None, "it ended"
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert not (tmp_path / "mlflow.db").exists()
    make_store(uri)
    assert len(MlflowClient(tracking_uri=uri).search_experiments()) == 1


def test_its_server_shows_the_run(store):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", store[0]]
    server = subprocess.Popen(
        [*command, "--port", str(port), "--workers", "1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        page = f"http://127.0.0.1:{port}/"
        deadline = time.monotonic() + 300
        while True:
            try:
                assert b"<title>MLflow" in urllib.request.urlopen(page, timeout=5).read()
                break
            except OSError:
                assert server.poll() is None, "the server ended"
                assert time.monotonic() < deadline
                time.sleep(1)
        client = MlflowClient(tracking_uri=page)
        (found,) = client.search_experiments(filter_string="name = 'sweep_of_mine'")
        assert len(client.search_runs([found.experiment_id])) == 2
    finally:
        server.terminate()
        server.wait(60)
