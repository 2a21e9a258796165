"""Running the whole pipeline through DVC: settings into params.yaml, then `dvc repro`."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from exemplar.config import load_params
from exemplar.data.io import write_text
from exemplar.errors import ConfigError

_EXPONENT = re.compile(r"[+-]?[0-9]+[eE][+-]?[0-9]+")


def set_params(
    path: Path,
    *,
    profile: str | None,
    source: str | None,
    data_path: str | None,
    tasks: str | None,
    settings: Sequence[str],
) -> None:
    """Write the given options into params.yaml, comments kept, or leave it as it was on any error.

    `settings` are KEY=VALUE with KEY inside the chosen profile, VALUE in YAML.
    """
    changes: dict[str, Any] = dict(parse_setting(setting) for setting in settings)
    if source:
        changes["download_data.source"] = source
        if source in ("sample", "hub", "released"):  # a local source's folder is none of theirs
            changes["download_data.path"] = None
        if source == "released":  # whose passages keep their places
            changes |= {"download_data.max_pool": None, "download_data.wording": 0}
    if data_path:
        changes["download_data.path"] = data_path
    if tasks:
        changes["download_data.tasks"] = [name.strip() for name in tasks.split(",")]
    if not changes and not profile:
        return
    load_params(path)  # a broken file is reported as it is, before anything is changed
    from ruamel.yaml import YAML

    editor = YAML()
    editor.preserve_quotes = True
    editor.width = 4096
    editor.representer.add_representer(type(None), _write_null)
    document = editor.load(path.read_text(encoding="utf-8"))
    if profile:
        document["profile"] = profile
    chosen = document["profiles"].get(document["profile"])
    for key, value in changes.items() if chosen else ():  # an unknown one is refused below
        assign(chosen, key, value)
    text = io.StringIO()
    editor.dump(document, text)
    proposal = path.with_name(f".{path.name}.proposal")
    try:
        write_text(proposal, text.getvalue())
        load_params(proposal)
    except ConfigError as error:
        raise ConfigError(str(error).replace(str(proposal), "the new settings")) from None
    finally:
        proposal.unlink(missing_ok=True)
    write_text(path, text.getvalue())


def _write_null(representer: Any, _: None) -> Any:
    """Write null as the file does; ruamel would leave the place empty."""
    return representer.represent_scalar("tag:yaml.org,2002:null", "null")


def repro(targets: Sequence[str] = ()) -> int:
    """Run `dvc repro`; return its exit code, or that of the stage that failed.

    The stages find this environment's commands.
    """
    binaries = Path(sys.executable).parent
    environment = {
        "DVC_NO_ANALYTICS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "TOKENIZERS_PARALLELISM": "false",
        **os.environ,
        "PATH": f"{binaries}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    if not Path(".dvc").is_dir():
        raise ConfigError(
            "There is no .dvc folder here. Run from the project's root; outside a Git checkout "
            "run `dvc init --no-scm` first."
        )
    command = [sys.executable, "-m", "exemplar.dvc_repro", *targets]
    return subprocess.run(command, env=environment, check=False).returncode


def parse_setting(setting: str) -> tuple[str, Any]:
    """Read KEY=VALUE, VALUE in YAML. Raises `ConfigError` on anything else."""
    import yaml

    key, equals, value = setting.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set expects KEY=VALUE, got {setting!r}.")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {key}: the value {value!r} is not YAML ({error}).") from error
    if isinstance(parsed, str) and _EXPONENT.fullmatch(parsed):
        parsed = float(parsed)  # YAML 1.1 takes 1e-4, without a point, for text
    return key.strip(), parsed


def assign(profile: Any, key: str, value: Any) -> None:
    """Set the value at a dotted key of a profile. Raises `ConfigError` on an unknown key."""
    *parents, last = key.split(".")
    section = profile
    for name in parents:
        if not isinstance(section, dict) or name not in section:
            raise ConfigError(f"--set {key}: there is no section {name!r} in this profile.")
        section = section[name]
    if not isinstance(section, dict) or last not in section:
        known = ", ".join(section) if isinstance(section, dict) else "none"
        raise ConfigError(f"--set {key}: there is no {last!r} here; known: {known}.")
    section[last] = value
