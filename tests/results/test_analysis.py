"""Tables and figures of analyses, of made-up ones."""

import pandas as pd
import pytest
import trees

from resnests import load_runs
from resnests.results.analysis import analysis_tables, read_analyses
from resnests.results.analysis_plots import drawings
from resnests.results.cells import label_rows
from resnests.runs.analysis import LAST_MAPS, PREFIX, TRAINED, Analysis, Solve


def add_analysis(root, arch: str, variant: str, seed: int, blocks: int, eps: float) -> None:
    run = trees.add_run(root, arch=arch, variant=variant, seed=seed, dataset="cifar10")
    more = {"test_loss": 0.4, "train_squared": 0.1}
    groups = [f"3.{i + 1}" for i in range(blocks)]
    solves = [Solve(PREFIX, "exact", group, 576, 0.2, 1e-4, **more) for group in groups]
    solves.insert(0, Solve(TRAINED, "exact", groups[-1], 576, 0.3))
    last = Solve(LAST_MAPS, "exact", groups[-1], 640, 0.2 + eps, 1e-4, train_squared=0.1 + eps)
    run.analysis.path.mkdir()
    run.analysis.write_analysis(Analysis(5e-4, 5e-4, "0" * 64, True, solves=[*solves, last]))


@pytest.fixture
def analyses(tmp_path) -> pd.DataFrame:
    for arch, blocks in (("resnet20", 9), ("resnet110", 54), ("wrn16_8", 6)):
        for variant in ("resnest", "bn_resnest"):
            for seed in (0, 1):
                add_analysis(tmp_path, arch, variant, seed, blocks, blocks / 1000 + seed / 100)
    return read_analyses(label_rows(load_runs(tmp_path)))


def test_eps_over_depth_takes_architectures_of_the_same_widths(analyses):
    (drawing,) = [d for d in drawings(analyses) if d.key.startswith("depth_cifar10")]
    assert set(drawing.data["arch"]) == {"resnet20", "resnet110"}
    assert set(drawing.data["blocks"]) == {9, 54}
    deep = drawing.data[drawing.data["blocks"] == 54]
    assert sorted(deep["eps"].round(6)) == [0.054, 0.054, 0.064, 0.064]
    assert drawing.render("png").startswith(b"\x89PNG")


def test_the_table_has_eps_with_what_certificates_leave_open(analyses):
    table = analysis_tables(analyses)[0]
    (row,) = [r for r in table.rows if r[:2] == ["ResNet-110", "ResNEst"]]
    assert row[2] == "2"
    assert row[table.header.index("ε")].startswith("0.0590 [")
    assert "Certificates leave each ε open by at most 0.0001 to either side." in table.notes
