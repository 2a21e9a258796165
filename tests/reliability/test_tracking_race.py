"""Claims about several processes that share one MLflow store."""

import json
import subprocess
import sys

import pytest

from exemplar.registry.aliases import aliases_of
from exemplar.tracking.store import open_store

LOG = """
import sys
from exemplar.tracking import runs
from exemplar.tracking.store import open_store
store = open_store(sys.argv[1], "exemplar")
curve = [(update, 1 / (1 + update)) for update in range(100)]
for number in range(3):
    runs.log_run(store, name=f"{sys.argv[2]}/{number}", kind="round", round=1,
        params={"number": number}, metrics={"x": number}, curves={"loss": curve})
"""
PROMOTE = """
import json, sys
from exemplar.registry import aliases
from exemplar.tracking.store import open_store
store = open_store(sys.argv[1])
waiting, moves = json.loads(sys.argv[2]), []
while waiting:
    compared = aliases.aliases_of(store, "m").get("champion", "")
    if aliases.promote(store, "m", waiting[0], instead_of=compared):
        moves.append((compared, waiting.pop(0)))
print(json.dumps(moves))
"""


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


def together(script, *each):
    """Run the script in one process for each list of arguments, all at once; give their output."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for arguments in each
    ]
    results = [process.communicate(timeout=240) for process in processes]
    assert not any(process.returncode for process in processes), results
    return [out for out, _ in results]


@pytest.mark.slow
def test_processes_that_start_together_share_one_new_store_and_lose_nothing(uri, tmp_path):
    """MLflow's own start-up lets all but one die of a column that exists already."""
    together(LOG, *([uri, f"process-{number}"] for number in range(3)))
    store = open_store(uri, "exemplar", create=False)
    runs = store.client.search_runs([store.experiment_id])
    names = {f"process-{process}/{number}" for process in range(3) for number in range(3)}
    assert {run.info.run_name for run in runs} == names
    assert len(runs) == len(names)
    for run in runs:
        number = run.info.run_name[-1]
        assert (run.info.status, run.data.params) == ("FINISHED", {"number": number})
        assert run.data.metrics["x"] == int(number)
        points = store.client.get_metric_history(run.info.run_id, "loss")
        assert [point.step for point in points] == list(range(100))


@pytest.mark.slow
def test_two_promotions_at_once_leave_no_torn_aliases(uri):
    """`previous` would name a version that was never champion, and rollback would lead there."""
    store = open_store(uri)
    store.client.create_registered_model("m")
    for _ in range(8):
        store.client.create_model_version("m", source="file:///nowhere")
    lists = [json.dumps([str(number) for number in range(first, 9, 2)]) for first in (1, 2)]
    moves = [json.loads(out) for out in together(PROMOTE, *([uri, given] for given in lists))]
    followers = dict(moves[0] + moves[1])
    assert len(followers) == 8, "two versions replaced the same champion"
    order = [""]
    while order[-1] in followers:
        order.append(followers[order[-1]])
    assert len(order) == 9, "some champion was lost without being replaced"
    assert aliases_of(store, "m") == {"champion": order[-1], "previous": order[-2]}
    model = store.client.search_registered_models()
    assert [(item.name, item.tags) for item in model] == [("m", {})]
