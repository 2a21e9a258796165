"""Claims about several processes that share one MLflow store."""

import subprocess
import sys

import pytest

SCRIPT = """
import sys
from exemplar import tracking
store = tracking.open_store(sys.argv[1], "exemplar")
print(tracking.log_run(store, name=sys.argv[2], kind="round", round=1, params={}, metrics={"x": 1}))
"""


@pytest.mark.slow
def test_processes_that_start_together_share_one_new_store(tmp_path):
    """MLflow's own start-up lets all but one die of a column that exists already."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, uri, f"round-{number}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    results = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], results
    assert len({out.strip() for out, _ in results}) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]
