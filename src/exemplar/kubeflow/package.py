"""A compiled pipeline: the YAML file that runs here and on a cluster alike."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from exemplar.errors import ConfigError, DataError
from exemplar.kubeflow.arguments import BASELINES, SECTIONS


@dataclass(frozen=True)
class Package:
    """The file, what the pipeline is called, and the arguments that it was compiled with."""

    path: Path
    name: str
    defaults: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """Sha256 of the file: the name of its version on a server."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()

    def arguments(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the defaults with those given. Raises `ConfigError` for one that it lacks."""
        unknown = sorted(set(given) - set(self.defaults))
        if unknown:
            raise ConfigError(
                f"{self.path} has no parameter {', '.join(unknown)}; it has "
                f"{', '.join(self.defaults)}."
            )
        return {**self.defaults, **given}


def read_package(path: Path) -> Package:
    """Read a compiled pipeline. Raises `DataError` where the file is none of Exemplar's."""
    try:
        spec = next(yaml.safe_load_all(path.read_text(encoding="utf-8")))
        parameters = spec["root"]["inputDefinitions"]["parameters"]
        name = str(spec["pipelineInfo"]["name"])
        defaults = {key: item["defaultValue"] for key, item in parameters.items()}
    except FileNotFoundError:
        raise DataError(
            f"{path} does not exist. Write it with `exemplar pipeline compile`."
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError, StopIteration, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is no compiled pipeline ({type(error).__name__}: {error}). Write it with "
            "`exemplar pipeline compile`."
        ) from error
    missing = [key for key in (*SECTIONS, BASELINES) if key not in defaults]
    if missing:
        raise DataError(
            f"{path} is not a pipeline of this version of Exemplar: it has no parameter "
            f"{', '.join(missing)}. Compile it again with `exemplar pipeline compile`."
        )
    defaults["seed"] = int(defaults["seed"])  # YAML holds every number as a float
    return Package(path, name, defaults)
