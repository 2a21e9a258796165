"""The sections of params.yaml, one a step: frozen, strict values without unknown keys.

How they make a profile, and how the file is read, is in `config.py`. Settings stop at `steps.py`:
nothing below sees these classes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Dtype = Literal["auto", "float32", "bfloat16"]
Scope = Literal["task", "pool"]


class Section(BaseModel):
    """A part of params.yaml: frozen, strict, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Lm(Section):
    """The frozen language model that scores candidates and answers test queries."""

    ref: str
    dtype: Dtype = "auto"
    max_length: Count = 1024
    batch_tokens: Count | None = None

    @field_validator("ref")
    @classmethod
    def _holds_no_password(cls, ref: str) -> str:
        # The settings are written into MLflow and into files; a key has no place there.
        if ref.startswith("openai:") and "@" in ref.rpartition("://")[2].partition("/")[0]:
            raise ValueError(
                "an address with a user or password; give the key as EXEMPLAR_LM_API_KEY in the "
                "environment"
            )
        return ref


class DownloadData(Section):
    """Where examples come from and how many are kept (paper: 30,000 train, 10,000 test a task).

    `path`: the folder of the source 'local'; s3://BUCKET/FOLDER for 's3'; for 'hub' a mirror, or
    null; for 'released' the authors' files, in a folder or as hf://datasets/OWNER/NAME@REVISION, or
    null for theirs on the hub; `scores`: with their candidates and rewards. `wording`: which of a
    task's prompt templates is used. `drop_test_queries`: leave rows that ask a test query out of
    the pool; without, such a row stops the step, unless `allowed_leaks` names its task. A release
    is taken as it is, and such rows in it are counted.
    """

    source: Literal["sample", "local", "hub", "s3", "released"]
    path: str | None = None
    tasks: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    max_pool: Count | None = None
    max_train: Count | None = 30_000
    max_test: Count | None = 10_000
    wording: Annotated[int, Field(ge=0)] = 0
    scores: bool = True
    drop_test_queries: bool = True
    allowed_leaks: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _lists_are_tuples(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        lists = {n: tuple(v) for n, v in values.items() if isinstance(v, list)}
        return {**values, **lists}

    @model_validator(mode="after")
    def _a_leak_is_there_to_be_allowed(self) -> DownloadData:
        if self.allowed_leaks and self.drop_test_queries:
            raise ValueError("allowed_leaks has an effect only where drop_test_queries is false")
        return self

    @model_validator(mode="after")
    def _path_fits_source(self) -> DownloadData:
        if self.source == "local" and not self.path:
            raise ValueError("source 'local' needs a path: the folder that holds one folder a task")
        if self.source == "s3" and not (self.path or "").startswith("s3://"):
            raise ValueError(f"source 's3' needs a path like s3://BUCKET/FOLDER, got {self.path!r}")
        if self.source == "released" and (self.max_pool is not None or self.wording):
            raise ValueError(
                "source 'released' keeps every passage as it is, because its scores name them by "
                "their place: max_pool must be null and wording 0; `tasks` makes it smaller"
            )
        return self


class Bm25Candidates(Section):
    """Round 1's candidates (paper: the top 100 by BM25).

    `engine` rank-bm25 is the slow reference; it has the methods robertson and bm25+ alone.
    """

    num_candidates: Count = 100
    scope: Scope = "task"
    engine: Literal["bm25s", "rank-bm25"] = "bm25s"
    method: Literal["lucene", "robertson", "atire", "bm25l", "bm25+"] = "lucene"
    k1: Positive = 1.5
    b: Annotated[float, Field(ge=0, le=1)] = 0.75


class LlmScoring(Section):
    """How many of a query's candidates the LM scores (the paper's code: 32 of 100).

    The pairs are scored in parts of about `part_size`; a kill costs the part under way.
    """

    num_candidates: Count = 32
    part_size: Count = 4096


class Training(Section):
    """What both trainings share. One update is one optimizer step.

    A training that was killed goes on from its last checkpoint, one every `save_every` updates.
    """

    init: str
    learning_rate: Positive
    batch_size: Count
    num_updates: Count
    warmup: Annotated[int, Field(ge=0)] = 400
    num_top: Count = 3
    num_bottom: Count = 16
    num_negatives: Count
    max_length: Count
    clip_norm: Positive = 1.0
    freeze_layers: Annotated[int, Field(ge=0)] = 0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    gradient_checkpointing: bool = False
    eval_fraction: Share = 0.1
    eval_every: Count = 200
    save_every: Count = 200
    dtype: Dtype = "auto"


class RewardTraining(Training):
    """The cross-encoder reward model. `min_accuracy`: below it the model does not teach."""

    min_accuracy: Share


class RewardScoring(Section):
    """Tokens a batch when the reward model scores every candidate."""

    batch_tokens: Count = 8192


class KdTraining(Training):
    """Distillation into the bi-encoder."""

    temperature: Positive = 0.01
    teacher_temperature: Positive = 1.0
    contrastive_weight: Annotated[float, Field(ge=0)] = 0.2
    homogeneous_batches: bool = False


class Selection(Section):
    """How the test queries' demonstrations are chosen among their nearest candidates.

    `mmr_lambda`: maximal marginal relevance (dense retrieval alone), from 1, the nearest, to 0, the
    most diverse; null: off. What chooses looks at the `num_considered` nearest.
    """

    num_considered: Count = 50
    mmr_lambda: Annotated[float, Field(ge=0, le=1)] | None = None
    one_per_group: bool = False
    balance_labels: bool = False
    order: Literal["nearest_last", "nearest_first", "by_label"] = "nearest_last"


class Search(Section):
    """Demonstrations for test queries and candidates for the next round's training queries.

    Tasks of more than `approximate_above` pool examples are searched by an index that visits
    `probes` of its cells; null: always exact. `dtype` auto: float32 on a CPU, bfloat16 on a GPU.
    """

    num_shots: Count = 8
    num_candidates: Count = 100
    scope: Scope = "task"
    max_length: Count = 256
    dtype: Dtype = "auto"
    approximate_above: Count | None = 1_000_000
    probes: Count = 32
    selection: Selection = Selection()


class Evaluation(Section):
    """Few-shot evaluation."""

    max_new_tokens: Count = 64
    num_resamples: Count = 2000


class Promotion(Section):
    """The gate. `baseline` is the opponent while there is no champion yet."""

    experiment: str = "exemplar"
    registered_model: str = "exemplar-retriever"
    baseline: str = "bm25"
    margin: Annotated[float, Field(ge=0)] = 2.0
    alpha: Share = 0.05
    num_resamples: Count = 10_000
    entry_script: str = "mlflow/served_model.py"


class Report(Section):
    """The report page."""

    title: str = "Exemplar report"


class Baseline(Section):
    """A method to compare with. `encoder` defaults to the one that distillation starts from.

    The prefixes stand before each query and each pool example where the encoder was trained so.
    """

    method: Literal["zero_shot", "random", "kmeans", "bm25", "dense"]
    encoder: str | None = None
    query_prefix: str = ""
    passage_prefix: str = ""

    @model_validator(mode="after")
    def _has_an_encoder_for_what_it_says(self) -> Baseline:
        given = [
            name for name in ("encoder", "query_prefix", "passage_prefix") if getattr(self, name)
        ]
        if given and self.method not in ("dense", "kmeans"):
            raise ValueError(f"method {self.method} has no encoder, so {given[0]} says nothing")
        return self


class Trained(Section):
    """A retriever trained beside the rounds by the settings of kd_training, and then a baseline.

    `teacher`: "llm_scores" learns from the LM's scores by contrast alone (EPR); "rewards" distils
    rewards, as a round does. `path`: the file, or a folder with such files a round, from the root.
    """

    teacher: Literal["llm_scores", "rewards"]
    path: str


class Round(Section):
    """One round; `next` and `after` name its neighbours for DVC's stage graph."""

    number: Count
    next: str
    after: str
