"""params.yaml as frozen, strict values: the only place that knows its keys.

A profile (`demo`, `cpu`, `paper`) holds one section a step, named like the step, and the two
that several steps share: `seed` and `lm`. The top level says which profile is on, which rounds run
and which baselines stand beside them, because DVC unrolls its stages over those. Config stops at
`steps.py`: nothing below sees these classes.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from exemplar.errors import ConfigError

_BASELINE_NAME = re.compile(r"[a-z][a-z0-9_-]*")
_ROUND_NAME = re.compile(r"r[0-9]+")
_EXPONENT = re.compile(r"[+-]?[0-9]+[eE][+-]?[0-9]+")

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
    batch_tokens: Count = 4096


class DownloadData(Section):
    """Where examples come from and how many are kept (paper: 30,000 train, 10,000 test a task)."""

    source: Literal["sample", "local"]
    path: str | None = None
    tasks: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    max_pool: Count | None = None
    max_train: Count | None = 30_000
    max_test: Count | None = 10_000

    @model_validator(mode="before")
    @classmethod
    def _lists_are_tuples(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("tasks"), list):
            return {**values, "tasks": tuple(values["tasks"])}
        return values

    @model_validator(mode="after")
    def _path_fits_source(self) -> DownloadData:
        if self.source == "local" and not self.path:
            raise ValueError("source 'local' needs a path: the folder that holds one folder a task")
        return self


class Bm25Candidates(Section):
    """Round 1's candidates (paper: the top 100 by BM25)."""

    num_candidates: Count = 100
    scope: Scope = "task"
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


class Search(Section):
    """Demonstrations for test queries and candidates for the next round's training queries."""

    num_shots: Count = 8
    num_candidates: Count = 100
    scope: Scope = "task"
    max_length: Count = 256


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
    """A method to compare with. `encoder` defaults to the one that distillation starts from."""

    method: Literal["zero_shot", "random", "kmeans", "bm25", "dense"]
    encoder: str | None = None


class Round(Section):
    """One round; `next` and `after` name its neighbours for DVC's stage graph."""

    number: Count
    next: str
    after: str


class Profile(Section):
    """All settings of a run, one section a step."""

    seed: Annotated[int, Field(ge=0)] = 0
    lm: Lm
    download_data: DownloadData
    bm25_candidates: Bm25Candidates
    llm_scoring: LlmScoring
    reward_training: RewardTraining
    reward_scoring: RewardScoring
    kd_training: KdTraining
    search: Search
    evaluation: Evaluation
    promotion: Promotion
    report: Report

    @model_validator(mode="after")
    def _numbers_fit_together(self) -> Profile:
        drawn, proposed = self.llm_scoring.num_candidates, self.bm25_candidates.num_candidates
        if drawn > min(proposed, self.search.num_candidates):
            raise ValueError(
                f"llm_scoring.num_candidates is {drawn}, more than the candidates proposed "
                f"(bm25_candidates: {proposed}, search: {self.search.num_candidates})"
            )
        return self


class Params(Section):
    """The whole of params.yaml."""

    profile: str
    rounds: Annotated[dict[str, Round], Field(min_length=1)]
    baselines: dict[str, Baseline]
    profiles: dict[str, Profile]

    @property
    def active(self) -> Profile:
        """The profile that is switched on."""
        return self.profiles[self.profile]

    @model_validator(mode="after")
    def _names_are_known(self) -> Params:
        if self.profile not in self.profiles:
            known = sorted(self.profiles)
            raise ValueError(f"profile is {self.profile!r}, expected one of {known}")
        for name in self.baselines:
            if not _BASELINE_NAME.fullmatch(name) or _ROUND_NAME.fullmatch(name):
                raise ValueError(
                    f"baseline {name!r}: expected lower-case letters, digits, - and _, and not the "
                    "name of a round (r1, r2, ...), because its files lie in a folder of that name"
                )
        for number, (name, item) in enumerate(self.rounds.items(), start=1):
            after = f"rounds/r{number - 1}/promotion.json" if number > 1 else "data/manifest.json"
            expected = {"number": number, "next": f"r{number + 1}", "after": after}
            if name != f"r{number}" or item.model_dump() != expected:
                raise ValueError(f"round {number} must read r{number}: {expected}")
        for name, profile in self.profiles.items():
            if profile.promotion.baseline not in self.baselines:
                raise ValueError(
                    f"profiles.{name}.promotion.baseline is {profile.promotion.baseline!r}, "
                    f"expected one of {sorted(self.baselines)}"
                )
        return self


def load_params(path: Path) -> Params:
    """Read and check params.yaml. Raises `ConfigError` that names each wrong key with its place."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path} does not exist. Run from the project's root, or give --params."
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{path}:\n{_explain(error, raw)}") from None


def _explain(error: ValidationError, raw: object) -> str:
    lines = []
    for item in error.errors():
        place = ".".join(str(part) for part in item["loc"]) or "top level"
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = f"unknown key{_suggestion(item['loc'])}"
        elif item["type"] == "missing":
            message = "this key is missing"
        elif item["type"] != "value_error":
            message = f"{message}, got {item['input']!r}"
            if isinstance(item["input"], str) and _EXPONENT.fullmatch(item["input"]):
                message += "; YAML reads that as text, write 1.0e-4 rather than 1e-4"
        lines.append(f"  {place}: {message}")
    return "\n".join(lines)


def _suggestion(location: tuple[int | str, ...]) -> str:
    """Propose the known key of the same section that is spelt most alike."""
    model: Any = Params
    for part in location[:-1]:
        field = getattr(model, "model_fields", {}).get(part)
        if field is not None:
            inner = getattr(field.annotation, "__args__", (field.annotation,))
            model = inner[-1]
    known = list(getattr(model, "model_fields", {}))
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known keys: {', '.join(known)}"
