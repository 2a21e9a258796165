"""What each process of a training on several nodes runs: torchrun -m exemplar.kubeflow.node CALL.

CALL is the file that `trainjob.py` wrote: a step's name, its settings, its arguments.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exemplar import launch, steps
from exemplar.data.io import read_json, write_json
from exemplar.kubeflow.arguments import profile_of

FIGURES = "figures.json"
"""Where, beside the call, the first process leaves what the step returned."""


def main(path: Path) -> None:
    """Run the step in this process, as one of several."""
    call = read_json(path)
    arguments = {name: _read(value) for name, value in call["arguments"].items()}
    counts = launch.call_or_exit(
        getattr(steps, call["step"]), (profile_of(call["settings"]),), arguments
    )
    if not launch.rank():
        write_json(path.with_name(FIGURES), dict(counts))


def written(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments as `main` reads them: paths marked, everything else as it is."""
    return {name: _written(value) for name, value in arguments.items()}


def _written(value: Any) -> Any:
    if isinstance(value, Path):
        return {"path": str(value)}
    return [_written(item) for item in value] if isinstance(value, list) else value


def _read(value: Any) -> Any:
    if isinstance(value, dict):
        return Path(value["path"])
    return [_read(item) for item in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main(Path(sys.argv[1]))
