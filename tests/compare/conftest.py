import pytest
import sweeps

from bbu_train.compare.comparison import compare


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """outputs/ with the made sweep: nine cells of three seeds, one run failed and one unfinished. Not to be changed."""
    outputs = tmp_path_factory.mktemp("sweep") / "outputs"
    sweeps.grid(outputs)
    return outputs


@pytest.fixture(scope="session")
def found(made):
    """What the made sweep says of eval/ap50."""
    return compare(made, "made", "eval/ap50", "max", "last")


@pytest.fixture
def outputs(tmp_path):
    return tmp_path / "outputs"
