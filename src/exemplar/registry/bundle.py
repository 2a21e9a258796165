"""The files of a registered retriever, and how MLflow keeps them.

A bundle is the folder that `serving.Retriever` is loaded from:

    encoder/      the trained retriever, a sentence-transformers folder
    index/        the pool's embeddings and examples
    evaluation/   outcomes.parquet and metrics.json, which the promotion gate compares
    search.json   how demonstrations were chosen in that evaluation, and so are when it is served
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exemplar.data.io import read_json, write_json
from exemplar.data.stored import StoredExamples
from exemplar.errors import ModelError
from exemplar.retrieval.demonstrations import Rules

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

DEFAULT_K = 4
"""Demonstrations of a query that asks for no number, from a model that was never evaluated."""

OUTCOMES = "artifacts/bundle/evaluation/outcomes.parquet"
"""Where a registered model keeps its outcomes."""

# The package exemplar itself is left out: it is installed from the project, and an index may hold
# something else under that name.
_REQUIREMENTS = ("mlflow", "torch", "transformers", "faiss-cpu", "numpy", "pyarrow")
_SEARCH = "search.json"


@dataclass(frozen=True)
class SearchSettings:
    """How a retriever chose demonstrations when it was evaluated: served, it does the same.

    `num_shots`: demonstrations of a query that asks for no number. `max_length`: tokens a query is
    cut to, None for what the encoder records. `labelled_tasks`: those whose answers are labels.
    """

    num_shots: int = DEFAULT_K
    max_length: int | None = None
    rules: Rules = field(default_factory=Rules)
    labelled_tasks: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the content of search.json."""
        return dataclasses.asdict(self)

    @classmethod
    def of_bundle(cls, folder: Path) -> SearchSettings:
        """Read those of a bundle; one that was never evaluated has none and takes the nearest."""
        path = folder / _SEARCH
        if not path.is_file():
            return cls()
        stored = read_json(path)
        try:
            rules, tasks = Rules(**stored.pop("rules")), tuple(stored.pop("labelled_tasks"))
            return cls(**stored, rules=rules, labelled_tasks=tasks)
        except (KeyError, TypeError, AttributeError) as error:
            raise ModelError(
                f"{path} does not hold the settings of a search: {error!r}. Was the bundle written "
                "by a newer version of Exemplar? Upgrade, or register the model again."
            ) from None


def write_bundle(
    folder: Path,
    *,
    retriever: Path,
    pool: Path,
    evaluation: Mapping[str, Path] | None = None,
    search: SearchSettings | None = None,
    progress: str | None = None,
) -> None:
    """Write the folder that a retriever is served from.

    `pool` is a folder that `PoolIndex.save` wrote with this retriever, or a Parquet file of
    examples: those are embedded now. `evaluation` gives files by the name they get there, `search`
    how the demonstrations in it were chosen.
    """
    from exemplar.retrieval.pool_index import PoolIndex

    shutil.copytree(retriever, folder / "encoder")
    if pool.is_dir():
        shutil.copytree(pool, folder / "index")
    else:
        from exemplar.retrieval.encoder import Encoder

        encoder = Encoder.load(retriever, max_length=search.max_length if search else None)
        index = PoolIndex.build(StoredExamples(pool), encoder.for_inference(), progress=progress)
        index.save(folder / "index")
    if search is not None:
        write_json(folder / _SEARCH, search.to_dict())
    (folder / "evaluation").mkdir()
    for name, path in (evaluation or {}).items():
        shutil.copy2(path, folder / "evaluation" / name)


def save_pyfunc(
    folder: Path, bundle: Path, entry_script: Path, *, model_id: str | None, run_id: str | None
) -> None:
    """Save a bundle as an MLflow model from code: the script is stored, no object is pickled.

    The input example is stored without being run: that would load the encoder once more.
    """
    import mlflow.pyfunc
    import pandas as pd
    from mlflow.models import Model

    if not entry_script.is_file():
        raise ModelError(
            f"The served model's entry script {entry_script} does not exist. It is "
            "mlflow/served_model.py of the project; run from the project's root."
        )
    num_shots = SearchSettings.of_bundle(bundle).num_shots
    mlflow.pyfunc.save_model(
        path=str(folder),
        python_model=str(entry_script),
        artifacts={"bundle": str(bundle)},
        mlflow_model=Model(model_id=model_id, run_id=run_id),
        signature=_signature(num_shots),
        input_example=(pd.DataFrame({"query": ["Where is my parcel?"]}), {"k": num_shots}),
        pip_requirements=[f"{name}=={_version(name)}" for name in _REQUIREMENTS],
    )


def _signature(num_shots: int) -> ModelSignature:
    """Return what the model takes and gives; `num_shots`: what a call without k gets."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType, Array, Object, Property

    found = Object(
        [
            *(
                Property(name, DataType.string)
                for name in ("example_id", "task", "query", "answer")
            ),
            Property("similarity", DataType.double),
        ]
    )
    turn = Object([Property("role", DataType.string), Property("content", DataType.string)])
    return ModelSignature(
        inputs=Schema(
            [
                ColSpec("string", "query"),
                ColSpec("string", "task", required=False),
                # MLflow refuses a column of integers or objects in which some rows are missing.
                ColSpec("double", "k", required=False),
                ColSpec(AnyType(), "filters", required=False),
                ColSpec("string", "format", required=False),
            ]
        ),
        outputs=Schema(
            [
                ColSpec(Array(found), "demonstrations"),
                ColSpec("string", "prompt", required=False),
                ColSpec(Array(turn), "messages", required=False),
            ]
        ),
        params=ParamSchema(
            [
                ParamSpec("k", DataType.long, num_shots),
                ParamSpec("format", DataType.string, "text"),
            ]
        ),
    )


def _version(package: str) -> str:
    # "2.9.0+cpu" names a build that package indexes do not have.
    return importlib.metadata.version(package).partition("+")[0]
