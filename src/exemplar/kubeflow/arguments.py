"""Settings as pipeline parameters: one a section of a profile, as JSON, and the baselines.

A step gets the sections that it reads and no others, so that a changed setting makes a cluster's
cache forget those steps alone that depend on it. JSON text rather than a struct, because KFP turns
the whole numbers of a struct into floats and takes no null.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from exemplar.config import Params, Profile, check_profile, check_sections
from exemplar.errors import ConfigError
from exemplar.runner import assign, parse_setting
from exemplar.settings import Baseline, Round

SECTIONS = tuple(Profile.model_fields)
"""The pipeline parameters that hold settings: `seed` is a number, the others are JSON texts."""

BASELINES = "baselines"
"""The pipeline parameter that lists the baselines: of each its target, method and encoder."""

TARGET = "target"
"""The name of a baseline in that list; `name` means something else to KFP's loops."""


def of_profile(profile: Profile, baselines: Mapping[str, Baseline]) -> dict[str, Any]:
    """Return the pipeline's arguments for a profile.

    Raises `ConfigError` where the gate's first opponent is not among the baselines.
    """
    if profile.promotion.baseline not in baselines:
        raise ConfigError(
            f"promotion.baseline is {profile.promotion.baseline!r}; in a pipeline expected one of "
            f"{', '.join(baselines)}, for retrievers under `trained` run by DVC alone."
        )
    sections = profile.model_dump(mode="json")
    return {
        **{name: _encoded(sections[name]) for name in SECTIONS},
        BASELINES: [
            {TARGET: name, **baseline.model_dump(exclude_none=True)}
            for name, baseline in baselines.items()
        ],
    }


def overridden(arguments: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """Return the arguments with settings (KEY=VALUE, as for `exemplar run --set`) in them.

    Raises `ConfigError` where a key is unknown or a value does not fit.
    """
    sections = {name: _decoded(name, arguments[name]) for name in SECTIONS}
    for setting in settings:
        assign(sections, *parse_setting(setting))
    check_profile(sections, "the new settings")
    return {**arguments, **{name: _encoded(value) for name, value in sections.items()}}


def profile_of(sections: Mapping[str, Any]) -> Profile:
    """Return the profile of a step: the sections that it was given, checked."""
    return check_sections(
        {name: _decoded(name, value) for name, value in sections.items()}, "pipeline parameters"
    )


def baseline_of(item: Mapping[str, str]) -> Baseline:
    """Return the settings of one baseline of the list."""
    return Baseline.model_validate({key: value for key, value in item.items() if key != TARGET})


def params_of(
    sections: Mapping[str, Any], baselines: Sequence[Mapping[str, str]], rounds: Sequence[int]
) -> Params:
    """Return the params.yaml that the sections, the baselines and the rounds so far amount to."""
    methods = {item[TARGET]: baseline_of(item) for item in baselines}
    return Params.model_construct(
        profile="pipeline",
        rounds={f"r{n}": Round(number=n, next=f"r{n + 1}", after="") for n in rounds},
        baselines=methods,
        profiles={"pipeline": profile_of(sections)},
    )


def _encoded(value: Any) -> Any:
    return value if isinstance(value, int) else json.dumps(value, ensure_ascii=False)


def _decoded(name: str, value: Any) -> Any:
    if not isinstance(value, str):
        return int(value) if isinstance(value, float) and value.is_integer() else value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"pipeline parameter {name}: expected a section of params.yaml as JSON, got "
            f"{value[:60]!r} ({error})."
        ) from None
