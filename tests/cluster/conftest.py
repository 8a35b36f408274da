import pytest
from clusters import end_all


@pytest.fixture(autouse=True)
def _no_sweep_is_left():
    yield
    end_all()


def pytest_collection_modifyitems(config, items):
    """Not among the others: they take minutes, and a machine to themselves."""
    if "cluster" in config.getoption("markexpr"):
        return
    for item in items:
        if item.get_closest_marker("cluster"):
            item.add_marker(pytest.mark.skip(reason="runs with pytest -m cluster"))
