"""The files of a registered retriever, and how MLflow keeps them.

A bundle is the folder that `serving.Retriever` is loaded from:

    encoder/      the trained retriever, a sentence-transformers folder
    index/        the pool's embeddings and examples
    evaluation/   outcomes.parquet and metrics.json, which the promotion gate compares
"""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Mapping
from pathlib import Path

from exemplar.data.stored import StoredExamples
from exemplar.errors import ModelError

DEFAULT_K = 4
"""Demonstrations of a query that asks for no number."""

OUTCOMES = "artifacts/bundle/evaluation/outcomes.parquet"
"""Where a registered model keeps its outcomes."""

# The package exemplar itself is left out: it is installed from the project, and an index may hold
# something else under that name.
_REQUIREMENTS = ("mlflow", "torch", "transformers", "faiss-cpu", "numpy", "pyarrow")


def write_bundle(
    folder: Path,
    *,
    retriever: Path,
    pool: Path,
    evaluation: Mapping[str, Path] | None = None,
    progress: str | None = None,
) -> None:
    """Write the folder that a retriever is served from.

    `pool` is a folder that `PoolIndex.save` wrote with this retriever, or a Parquet file of
    examples: those are embedded now. `evaluation` gives files by the name they get there.
    """
    from exemplar.retrieval.pool_index import PoolIndex

    shutil.copytree(retriever, folder / "encoder")
    if pool.is_dir():
        shutil.copytree(pool, folder / "index")
    else:
        from exemplar.retrieval.encoder import Encoder

        encoder = Encoder.load(retriever)
        index = PoolIndex.build(StoredExamples(pool), encoder, progress=progress)
        index.save(folder / "index")
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
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType, Array, Object, Property

    if not entry_script.is_file():
        raise ModelError(
            f"The served model's entry script {entry_script} does not exist. It is "
            "mlflow/served_model.py of the project; run from the project's root."
        )
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
    signature = ModelSignature(
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
                ParamSpec("k", DataType.long, DEFAULT_K),
                ParamSpec("format", DataType.string, "text"),
            ]
        ),
    )
    mlflow.pyfunc.save_model(
        path=str(folder),
        python_model=str(entry_script),
        artifacts={"bundle": str(bundle)},
        mlflow_model=Model(model_id=model_id, run_id=run_id),
        signature=signature,
        input_example=(pd.DataFrame({"query": ["Where is my parcel?"]}), {"k": DEFAULT_K}),
        pip_requirements=[f"{name}=={_version(name)}" for name in _REQUIREMENTS],
    )


def _version(package: str) -> str:
    # "2.9.0+cpu" names a build that package indexes do not have.
    return importlib.metadata.version(package).partition("+")[0]
