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


def pytest_collection_modifyitems(config, items):
    """Skip cluster tests among the others: they take minutes, and a machine to themselves."""
    if "cluster" in config.getoption("markexpr"):
        return
    for item in items:
        if item.get_closest_marker("cluster"):
            item.add_marker(pytest.mark.skip(reason="runs with pytest -m cluster"))
