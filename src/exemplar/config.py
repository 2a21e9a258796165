"""params.yaml as one frozen, strict value: the only place that reads it.

A profile (`demo`, `cpu`, `paper`) holds one section a step (`settings.py`), named like the step,
and the two that several steps share: `seed` and `lm`. The top level says which profile is on,
which rounds run and what stands beside them (`baselines`, `trained`), because DVC unrolls its
stages over those.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, cast

import yaml
from pydantic import Field, TypeAdapter, ValidationError, model_validator

from exemplar.errors import ConfigError
from exemplar.settings import (
    Baseline,
    Bm25Candidates,
    DownloadData,
    Evaluation,
    KdTraining,
    LlmScoring,
    Lm,
    Promotion,
    Report,
    RewardScoring,
    RewardTraining,
    Round,
    Search,
    Section,
    Trained,
)

_BASELINE_NAME = re.compile(r"[a-z][a-z0-9_-]*")
_ROUND_NAME = re.compile(r"r[0-9]+")
_EXPONENT = re.compile(r"[+-]?[0-9]+[eE][+-]?[0-9]+")


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
    trained: dict[str, Trained] = Field(default_factory=dict)
    profiles: dict[str, Profile]

    @property
    def active(self) -> Profile:
        """The profile that is switched on."""
        return self.profiles[self.profile]

    @property
    def beside(self) -> dict[str, Baseline]:
        """Every method beside the rounds: the baselines, then the retrievers that are trained."""
        dense = Baseline(method="dense")
        return {**self.baselines, **dict.fromkeys(self.trained, dense)}

    @model_validator(mode="after")
    def _names_are_known(self) -> Params:
        if self.profile not in self.profiles:
            known = sorted(self.profiles)
            raise ValueError(f"profile is {self.profile!r}, expected one of {known}")
        for name in (*self.baselines, *self.trained):
            if name in self.baselines and name in self.trained:
                raise ValueError(f"{name!r} names both a baseline and a trained one; rename one")
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
            if profile.promotion.baseline not in self.beside:
                raise ValueError(
                    f"profiles.{name}.promotion.baseline is {profile.promotion.baseline!r}, "
                    f"expected one of {sorted(self.beside)}"
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
        raise ConfigError(f"{path}:\n{explain(error, Params)}") from None


def check_profile(raw: object, where: str) -> Profile:
    """Check a profile that comes from elsewhere. Raises `ConfigError` that begins with `where`."""
    try:
        return Profile.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{where}:\n{explain(error, Profile)}") from None


def check_sections(raw: Mapping[str, object], where: str) -> Profile:
    """Check some sections alone; a step that reads another one than these gets AttributeError."""
    sections = {}
    for name, value in raw.items():
        try:
            field: TypeAdapter[Any] = TypeAdapter(Profile.model_fields[name].annotation or object)
            sections[name] = field.validate_python(value, strict=True)
        except ValidationError as error:
            told = explain(error, Profile.model_fields[name].annotation)
            raise ConfigError(f"{where}, {name}:\n{told}") from None
    return cast(Profile, SimpleNamespace(**sections))


def explain(error: ValidationError, model: Any) -> str:
    """Return a line for each wrong key of a file that `model` describes, with its place."""
    lines = []
    for item in error.errors():
        place = ".".join(str(part) for part in item["loc"]) or "top level"
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = f"unknown key{_suggestion(item['loc'], model)}"
        elif item["type"] == "missing":
            message = "this key is missing"
        elif item["type"] != "value_error":
            message = f"{message}, got {item['input']!r}"
            if isinstance(item["input"], str) and _EXPONENT.fullmatch(item["input"]):
                message += "; YAML reads that as text, write 1.0e-4 rather than 1e-4"
        lines.append(f"  {place}: {message}")
    return "\n".join(lines)


def _suggestion(location: tuple[int | str, ...], model: Any) -> str:
    """Propose the known key of the same section that is spelt most alike."""
    for part in location[:-1]:
        field = getattr(model, "model_fields", {}).get(part)
        if field is not None:
            inner = getattr(field.annotation, "__args__", (field.annotation,))
            model = inner[-1]
    known = list(getattr(model, "model_fields", {}))
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known keys: {', '.join(known)}"
