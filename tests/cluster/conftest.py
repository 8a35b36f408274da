import pytest
from clusters import GRID, LONG, end_all, sweep


@pytest.fixture(autouse=True)
def _no_sweep_is_left():
    yield
    end_all()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Return the results of LONG for GRID, made by a sweep on this machine."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert sweep(folder, *GRID, LONG) == 0
    return folder
