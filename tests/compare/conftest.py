import pytest
import sweeps

from bbu_train.compare.comparison import compare


@pytest.fixture(scope="session")
def grid_outputs(tmp_path_factory):
    """outputs/ with the sweep of `sweeps.add_grid`: four candidates of three seeds. Tests must not change its runs."""
    outputs = tmp_path_factory.mktemp("sweep") / "outputs"
    sweeps.add_grid(outputs)
    return outputs


@pytest.fixture(scope="session")
def grid_comparison(grid_outputs):
    """The comparison of that sweep by eval/ap50."""
    return compare(grid_outputs, sweeps.NAME, "eval/ap50", "max", "last")


@pytest.fixture
def outputs(tmp_path):
    return tmp_path / "outputs"
