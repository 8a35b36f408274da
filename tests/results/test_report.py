"""The report page: complete, self-contained, and safe against what stands in records."""

from html.parser import HTMLParser

import pytest
import trees

from resnests.results import report
from resnests.results.cells import label_rows
from resnests.results.frame import read_runs
from resnests.results.tables import accuracy_tables


class Reader(HTMLParser):
    """Collects tags, attributes and text, and checks that tags close in order."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text, self._open = [], [], [], []
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in ("meta", "img", "br"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def page(tmp_path):
    trees.add_run(tmp_path, 90)
    trees.add_run(tmp_path, 92, seed=1)
    trees.add_run(
        tmp_path, seed=2, status="failed", record={"error": "<script>alert('x')</script>"}
    )
    runs = label_rows(read_runs(tmp_path)[0])
    return report.page(
        runs, accuracy_tables(runs), [("A figure & more", b"\x89PNG")], ["record.json: left out"]
    )


def test_it_holds_tables_figures_runs_and_what_is_missing(page):
    text = " ".join(Reader(page).text)
    for expected in (
        "3 runs: 2 complete, 1 failed", "91.00% ± 1.41 (0.27M)", "Failed: seed 2",
        "record.json: left out", "optimizer.weight_decay", "0.0005", "provenance.versions.python",
        "0123456789",
    ):  # fmt: skip
        assert expected in text


def test_times_are_readable(page):
    text = Reader(page).text
    assert text.count("2025-01-01 00:00 UTC") == 3  # started, in the list of runs
    assert "2025-01-01 01:00 UTC" in text  # ended
    assert "1735689600" not in page


def test_it_needs_neither_network_nor_scripts(page):
    reader = Reader(page)
    assert not {"script", "link", "iframe"} & set(reader.tags)
    addresses = [value for name, value in reader.attributes if name in ("src", "href")]
    outside = [address for address in addresses if not address.startswith("#")]
    assert len(outside) == 1
    assert outside[0].startswith("data:image/png;base64,")
    assert "url(" not in page
    assert "@import" not in page


def test_cells_of_tables_lead_to_their_runs(page):
    reader = Reader(page)
    cells = {value[1:] for name, value in reader.attributes if name == "href"}
    assert cells <= {value for name, value in reader.attributes if name == "id"}
    assert len(cells) == 1


def test_what_stands_in_records_is_shown_not_run(page):
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_figures_carry_their_caption_as_alternative_text(page):
    assert ("alt", "A figure & more") in Reader(page).attributes
