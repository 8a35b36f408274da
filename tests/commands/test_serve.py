"""The live page: what it shows, and that whoever asks, or wrote what is shown, can do no harm."""

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import psutil
import pytest
import trees
from helpers import REPOSITORY, run_command

from resnests.commands import views
from resnests.commands.live import Live
from resnests.commands.serve import Handler, Server, serve
from resnests.commands.views import POLL_SECONDS, InsideReader
from resnests.errors import UserError
from resnests.results.frame import read_runs
from resnests.results.measured import Measured
from resnests.results.output import plan
from resnests.runs.analysis import Analysis
from resnests.runs.sweeps import write_asked, write_search

PLAN = plan(None, "html", None, None)
NASTY = "<script>alert('x')</script>\"'><img src=x onerror=alert(1)>\x1b[2J"


@contextmanager
def served(root, token=None, plan=PLAN):
    """Serve a tree in a thread; yield a function that asks for an address."""
    server = Server(("127.0.0.1", 0), Handler)
    server.live, server.token, server.names = Live(str(root), plan), token, set()
    server.live.reader.due = float("inf")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()

    def ask(address="/", method="GET", **headers):
        connection = http.client.HTTPConnection(*server.server_address, timeout=30)
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, address, headers=headers)
        answer = connection.getresponse()
        answer.text = answer.read().decode()
        connection.close()
        return answer

    ask.server = server
    try:
        yield ask
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("work") / "runs"
    recipe = {"trainer__epochs": 5, "dataset__val_fraction": 0.1}
    for variant in ("standard", "resnest"):
        for seed in (0, 1):
            rows = trees.history_rows(90 + seed, 5, val=True)
            trees.add_run(root, 90 + seed, seed=seed, variant=variant, history=rows, **recipe)
    error = {"error": f"OSError: {NASTY}"}
    failed = trees.add_run(root, status="failed", seed=7, record=error, **recipe)
    failed.log_file.write_text("first\n" * 30 + f"the last line {NASTY}\n")
    planned = [trees.make_config(root, variant="a_resnest", seed=n, **recipe) for n in range(3)]
    write_asked(planned, "waiting for a device")
    return root


@pytest.fixture(scope="module")
def ask(root):
    with served(root) as ask:
        yield ask


class Tags(HTMLParser):
    """Collects tags with their attributes, and checks that they close in order."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        void = ("meta", "img", "br", "link", "input")
        if tag not in void and not self.get_starttag_text().endswith("/>"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def links(page):
    return [values["href"] for tag, values in Tags(page).tags if tag == "a"]


def test_it_shows_progress_tables_failures_runs_and_what_is_planned(ask):
    answer = ask()
    assert answer.status == 200
    for text in (
        "1 failed, 3 queued (waiting for a device)", "90.50% ± 0.71 (0.27M)",
        "3 of 3 runs left, at work on", "the last line", "Differences to Standard",
        "CIFAR-10, ResNet-20 ResNEst", '<progress value="4"',
    ):  # fmt: skip
        assert text in answer.text
    assert answer.text.count("first\n") == 9  # the end of the log


def test_a_search_and_a_sweep_without_any_run_yet_are_shown(tmp_path):
    write_search(trees.make_config(tmp_path), ended=3, pace=60.0)
    with served(tmp_path) as ask:
        page = ask()
        assert "17 of 20 trials of study-tune" in page.text
        assert "no run in it" in page.text
        tag = page.getheader("ETag")
        assert ask(If_None_Match=tag).status == 304
        write_asked([trees.make_config(tmp_path)], "a device")
        ask.server.live.reader.due = 0.0
        page = ask("/?w=arch%3Dno", If_None_Match=tag).text
        assert "arch=no: no run has it" in page
        assert "1 of 1 runs left, at work on" in page
        assert "17 of 20 trials of study-tune" in page


def test_words_that_are_too_many_are_refused_and_none_is_cut(ask):
    many = ",".join(["resnet20"] * 100)
    assert ask(f"/?w=arch={many}").text.count("seed=7") > 0
    page = ask(f"/?w=arch={many * 3}").text
    assert "expected at most 2000 letters that choose runs, not 2702" in page


def test_a_run_that_is_opened_shows_its_curves_values_and_log(ask, root):
    (address,) = [link for link in links(ask().text) if "run=" in link and "seed%3D7" in link][:1]
    page = ask("/" + address).text
    assert "failed: OSError" in page
    other = next(link for link in links(page) if "resnest%2F" in link and "seed%3D1" in link)
    page = ask("/" + other).text
    assert "<title>validation, epoch 5: 92%</title>" in page
    assert "differs" in page
    assert "optimizer.momentum" in page


def test_every_cell_of_a_table_leads_to_its_runs_and_their_directories(ask, root):
    page = ask().text
    table = page[page.index('<div id="tables">') : page.index('id="runs"')]
    cell = next(link for link in links(table.split("<section>")[1].split("</section>")[0]))
    assert f'id="{cell.split("#")[1]}"' not in page
    opened = ask("/" + cell.split("#")[0]).text
    assert f'id="{cell.split("#")[1]}"' in opened
    assert str(root / "cifar10" / "resnet20") in opened
    assert "Configuration and provenance" in opened
    assert "seed 0 validation" in opened


def test_words_choose_runs_and_headings_sort_them(ask):
    page = ask("/?w=variant%3Dresnest&w=seed%3D0,1").text
    assert "2 of 2 done" in page
    assert '<option value="variant=resnest" selected>' in page
    assert "a_resnest" not in page[page.index('id="runs"') : page.index('id="cells"')]
    order = re.compile(r"<td>(\d+)</td><td>complete</td>")
    up = order.findall(ask("/?w=variant%3Dresnest&sort=test_accuracy").text)
    down = order.findall(ask("/?w=variant%3Dresnest&sort=-test_accuracy").text)
    assert (up, down) == (["0", "1"], ["1", "0"])
    assert "no run has it" in ask("/?w=variant%3Dvgg").text
    assert "expected key=value" in ask("/?w=nonsense").text


def test_what_has_not_changed_is_not_sent_again(ask):
    tag = ask().getheader("ETag")
    assert ask(If_None_Match=tag).status == 304
    assert ask("/?sort=seed", If_None_Match=tag).status == 200


def test_hostile_text_stays_text(ask):
    page = ask(
        "/?run=" + NASTY.replace("\x1b", "").replace(" ", "%20") + "&w=%3Cb%3Ex&sort=%22"
    ).text
    for shown in (ask().text, page):
        tags = Tags(shown).tags
        assert not [
            tag for tag, values in tags if tag == "img" or any(n[:2] == "on" for n in values)
        ]
        assert [tag for tag, _ in tags].count("script") == 1  # ours


@pytest.mark.parametrize(
    "address",
    [
        "/etc/passwd", "/../../etc/passwd", "//etc/passwd", "/%2e%2e/%2e%2e/etc/passwd",
        "/runs/cifar10", "/favicon.ico", "/static/x",
    ],
)  # fmt: skip
def test_there_is_one_address(ask, address):
    assert ask(address).status == 404


@pytest.mark.parametrize("run", ["/etc", "../../..", "/etc/passwd", "%00", "x" * 5000])
def test_a_run_must_be_one_of_those_below_the_folder(ask, run):
    page = ask(f"/?run={run}").text
    assert "root:" not in page
    assert '<section id="run">\n</section>' in page


def test_links_that_lead_out_are_not_followed(tmp_path):
    outside = trees.add_run(tmp_path / "outside", arch="resnet8")
    (tmp_path / "secret").write_text("the secret of somebody else\n")
    root = tmp_path / "runs"
    inside = trees.add_run(root, status="failed", record={"error": "no"})
    with served(root) as ask:
        assert "1 failed" in ask().text
        inside.log_file.symlink_to(tmp_path / "secret")  # while it is served
        assert "the secret" not in ask().text
    swapped = trees.add_run(root, seed=1)
    swapped.history_file.symlink_to(tmp_path / "secret")
    (root / "cifar10" / "resnet8").symlink_to(outside.path.parents[2])
    with served(root) as ask:
        page = ask().text
        assert page.count("is a link to what is not below") == 2
        assert "a link leads to it" in page
        assert (
            "resnet8/"
            not in page.replace("resnet8/standard", "", 1)
            .replace("left out, a link leads to it", "")
            .split('id="running"')[1]
        )


@pytest.mark.parametrize("name", ["run.log", "history.csv", "progress.json", "record.json"])
def test_what_is_no_plain_file_stops_nobody(tmp_path, name):
    me = {"host": socket.gethostname(), "pid": os.getpid()}
    me["process_started"] = psutil.Process().create_time()
    run = trees.add_run(tmp_path, status="running", provenance=me)
    trees.add_run(tmp_path, seed=1, status="failed", record={"error": "no"})
    file = run.path / name
    file.unlink(missing_ok=True)
    os.mkfifo(file)
    with served(tmp_path) as ask:
        page = ask("/?run=" + quote(str(run.path)))
        assert page.status == 200
        assert ("record.json: left out, [Errno 22] no plain file" in page.text) == (
            name == "record.json"
        )
        file.unlink()
        file.symlink_to("/dev/zero")
        ask.server.live.reader.last = None
        assert ask("/?run=" + quote(str(run.path))).status == 200


def test_a_metric_that_is_no_number_is_one_line(tmp_path):
    wrong = trees.add_run(tmp_path, record={"metrics": {"f1": {"test": "abc"}}})
    right = trees.add_run(tmp_path, seed=1, record={"metrics": {"f1": {"test": 0.25}}})
    line = f"{wrong.record_file}: left out, metrics.f1.test is &#39;abc&#39;, no number"
    for run in (wrong, right):
        page, _ = Live(str(tmp_path), PLAN).page({"run": [str(run.path)]}, "")
        assert line in page
        assert ("0.2500" in page) == (run is right)


def test_the_folder_of_one_run_is_served(tmp_path, monkeypatch):
    run = trees.add_run(tmp_path, history=trees.history_rows(90, 3))
    trees.add_run(tmp_path, seed=1)
    monkeypatch.chdir(run.path)
    for root in (str(run.path), "."):
        page, _ = Live(root, PLAN).page({"run": [root]}, "")
        assert "left out" not in page
        for text in ("1 of 1 done", "test, epoch 3: 90%", "in nothing from the recipes beside it"):
            assert text in page


def test_files_that_become_links_while_they_are_served_are_not_followed(tmp_path):
    secret = trees.add_run(tmp_path / "outside", history=trees.history_rows(77, 3, val=True))
    run = trees.add_run(tmp_path / "runs", history=trees.history_rows(90, 3))
    with served(tmp_path / "runs") as ask:
        address = "/?run=" + quote(str(run.path))
        assert "test, epoch 3: 90%" in ask(address).text
        run.history_file.unlink()
        run.history_file.symlink_to(secret.history_file)
        page = ask(address).text
        assert "differs" in page
        assert "epoch 3" not in page
    run.history_file.unlink()
    run.analysis.path.mkdir()
    run.analysis.analysis_file.symlink_to(tmp_path / "outside")
    with served(tmp_path / "runs") as ask:
        assert "analysis.json is a link to what is not below" in ask().text


def test_an_analysis_that_has_found_nothing_yet_is_shown(tmp_path):
    run = trees.add_run(tmp_path)
    run.analysis.path.mkdir()
    run.analysis.write_analysis(Analysis(5e-4, 5e-4, "0" * 64))
    page, _ = Live(str(tmp_path), PLAN).page({"run": [str(run.path)]}, "")
    assert "1 analysis not done" in page
    assert "analysis.status" in page


@pytest.mark.parametrize(
    ("asked", "line", "has_tables"),
    [
        (plan(None, "html", None, ["optimizer.lr=7", "standard"]), "no complete run has it", True),
        (replace(PLAN, what=Measured(epoch="best")), "have no held-out split", False),
    ],
)
def test_what_cannot_be_compared_yet_hides_nothing_else(tmp_path, asked, line, has_tables):
    me = {"host": socket.gethostname(), "pid": os.getpid()}
    me["process_started"] = psutil.Process().create_time()
    trees.add_run(tmp_path)
    history = trees.history_rows(90, 3)
    trees.add_run(tmp_path, seed=1, status="running", provenance=me, history=history)
    with served(tmp_path, plan=asked) as ask:
        page = ask().text
    assert "1 of 2 done, 1 running" in page
    assert "test, epoch 3: 90%" in page
    assert line in page
    assert ("90.00%" in page) == has_tables


def test_a_folder_whose_name_is_no_text_is_left_out(tmp_path):
    trees.add_run(tmp_path)
    trees.add_run(tmp_path, dataset="cifar100")
    name = os.fsdecode(b"\xff\xfe <b>")
    (tmp_path / "cifar100").rename(tmp_path / name)
    with served(tmp_path) as ask:
        page = ask("/?w=%ff&run=%ff%fe")
        assert page.status == 200
        page = ask()
        assert page.status == 200
        assert "1 of 1 done" in page.text
        assert "left out, as the name of its folder is no text in UTF-8" in page.text
    with pytest.raises(UserError, match="expected a directory whose name is text"):
        read_runs(tmp_path / name)
    (tmp_path / "only").mkdir()
    (tmp_path / name).rename(tmp_path / "only" / name)
    with pytest.raises(UserError, match="none of 1 records can be read"):
        read_runs(tmp_path / "only")


def test_what_is_above_the_folder_or_behind_a_link_is_not_looked_at(tmp_path):
    root, far = tmp_path / "runs", tmp_path / "far" / "away"
    trees.add_run(root)
    write_asked([trees.make_config(root, seed=n) for n in range(2)])
    far.mkdir(parents=True)
    (root / "cifar10" / "resnet8").symlink_to(tmp_path / "far")
    seen = []

    class Watched(InsideReader):
        def _row(self, run):
            seen.append(run.path.name)
            return super()._row(run)

    frame, said = Watched(str(root / "cifar10")).read()
    assert len(frame) == 1
    assert seen == ["resnet8", "seed=0"]
    assert "resnet8/record.json: left out, a link leads to it" in said[0]
    assert len(InsideReader(str(root)).read()[0]) == 2


@pytest.mark.parametrize(
    "method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"]
)
def test_only_get_and_head_are_answered(ask, method):
    assert ask(method=method).status == 501
    head = ask(method="HEAD")
    assert (head.status, head.text) == (200, "")
    assert int(head.getheader("Content-Length")) > 1000


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200), ("localhost:9000", 200), ("127.0.0.1:1", 200), ("[::1]:8642", 200),
        ("evil.example", 403), ("127.0.0.1.evil.example", 403), ("localhost.evil", 403),
        ("", 403), ("[", 403), ("10.0.0.1", 403),
    ],
)  # fmt: skip
def test_the_host_of_a_request_must_be_this_one(ask, host, status):
    assert ask(Host=host).status == status


def test_the_policy_admits_nothing_but_the_page_itself(ask):
    answer = ask()
    policy = answer.getheader("Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.getheader("X-Content-Type-Options") == "nosniff"
    assert answer.getheader("Cross-Origin-Resource-Policy") == "same-origin"
    tags = Tags(answer.text).tags
    addresses = [
        v for _, values in tags for n, v in values.items() if n in ("src", "href", "action")
    ]
    assert all(address.startswith(("?", "#", "data:,")) for address in addresses)


def test_another_host_is_served_with_the_token_only(root):
    with served(root, token="geheim") as ask:
        assert ask().status == 401
        assert ask("/?token=falsch").status == 401
        assert ask(Cookie="resnests_token=falsch").status == 401
        assert ask(Cookie="=;;;\x7f").status == 401
        entered = ask("/?token=geheim")
        assert (entered.status, entered.getheader("Location")) == (303, "/")
        cookie = entered.getheader("Set-Cookie")
        assert "HttpOnly" in cookie
        assert "SameSite=Strict" in cookie
        assert ask(Cookie=cookie.split(";")[0]).status == 200
        assert ask(Cookie=cookie.split(";")[0], Host="192.168.1.7:80").status == 200
        assert ask(Cookie=cookie.split(";")[0], Host="evil.example").status == 403


def test_what_nobody_thought_of_is_one_line(root, capfd, monkeypatch):
    with served(root) as ask:
        assert ask().status == 200
        monkeypatch.setattr("resnests.commands.live.render", lambda **_: 1 / 0)
        assert ask().status == 500
        said = capfd.readouterr().err
        assert (
            said == "aggregate.py: the page cannot be made: ZeroDivisionError: division by zero\n"
        )
        monkeypatch.undo()
        assert ask().status == 200


def test_a_request_that_is_none_costs_itself_only(ask, capfd):
    for line in (
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"\x00" * 70_000,
        b"GET /?" + b"a=b&" * 60 + b" HTTP/1.0\r\n\r\n",
    ):
        with (
            suppress(OSError),  # it may have hung up by now
            socket.create_connection(ask.server.server_address) as connection,
        ):
            connection.sendall(line)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(100)
    with socket.create_connection(ask.server.server_address) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")  # and leaves
    assert ask().status == 200
    assert "Traceback" not in capfd.readouterr().err


def test_a_tree_that_changes_and_goes_under_it_is_shown_as_it_is(tmp_path):
    root = tmp_path / "runs"
    root.mkdir()
    with served(root) as ask:
        reader = ask.server.live.reader
        assert "no run in it" in ask().text
        run = trees.add_run(root)
        reader.last = None
        assert "1 of 1 done" in ask().text
        run.record_file.write_text("{")
        reader.last = None
        assert "none of 1 records can be read" in ask().text
        trees.add_run(root, seed=1)
        reader.last = None
        page = ask().text
        assert "1 of 1 done" in page  # of a seed whose record is broken nothing is known
        assert "record.json: left out" in page
        root.rename(tmp_path / "elsewhere")
        reader.last = None
        assert "no such directory" in ask().text


def test_looks_take_a_small_part_of_the_time(tmp_path, monkeypatch):
    trees.add_run(tmp_path)
    reader = InsideReader(str(tmp_path))
    now, used = [0.0], iter((0.0, 1.0, 1.0, 10.0, 12.0))
    clock = SimpleNamespace(monotonic=lambda: now[0], thread_time=used.__next__)
    monkeypatch.setattr(views, "time", clock)
    frame, _ = reader.read()
    trees.add_run(tmp_path, seed=1)
    now[0] = reader.due - 0.1
    assert reader.read()[0] is frame
    now[0] = reader.due
    assert len(reader.read()[0]) == 2
    assert reader.due == now[0] + POLL_SECONDS
    now[0] = reader.due
    reader.read()
    assert reader.due == now[0] + 50


def test_a_port_that_is_taken_is_one_line(tmp_path):
    trees.add_run(tmp_path / "runs")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--serve {port}: expected a free one"):
            serve(str(tmp_path / "runs"), port, None, PLAN)
    with pytest.raises(UserError, match="expected a port"):
        serve(str(tmp_path / "runs"), 70_000, None, PLAN)
    for host in ("no.such.host.invalid", "192.0.2.1"):
        with pytest.raises(UserError, match=f"--host {host}: expected an address or name of this"):
            serve(str(tmp_path / "runs"), 0, host, PLAN)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [("--serve", "x"), ("--host", "localhost"), ("--serve", "--list"), ("nowhere", "--serve"),
     ("--serve", "--output", "x.html"), ("arch=resnet20", "--serve")],
)  # fmt: skip
def test_words_that_do_not_go_with_it_are_refused(tmp_path, words):
    done = run_command(*words, script="aggregate.py", cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@contextmanager
def server_process(folder: Path):
    """Serve as a user does; yield the process and its address."""
    command = [sys.executable, str(REPOSITORY / "aggregate.py"), "--serve", "0"]
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process, process.stdout.readline().split()[0]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_ctrl_c_ends_it_without_a_trace(root):
    with server_process(root.parent) as (process, address):
        assert address.startswith("http://127.0.0.1:")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
        assert (process.returncode, said) == (0, "")
