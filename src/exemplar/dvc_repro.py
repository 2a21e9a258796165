"""`dvc repro` that exits with the code of the stage that failed; DVC turns every failure into 255.

A process of its own, started by `runner.repro`: python -m exemplar.dvc_repro [TARGET ...]
"""

from __future__ import annotations

import logging
import re
import sys

_EXITED = re.compile(r"exited with ([0-9]+)$")


class _StageCode(logging.Handler):
    """Remembers the exit code in the error that DVC logs when it gives up."""

    found: int | None = None

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        while error is not None:
            if match := _EXITED.search(str(error)):
                self.found = int(match[1])
            error = error.__cause__


def main(targets: list[str]) -> int:
    """Run the command and return its exit code, or that of the stage that failed."""
    from dvc.cli import main as dvc

    stage = _StageCode(logging.ERROR)
    logging.getLogger("dvc").addHandler(stage)
    code = dvc(["repro", *targets])
    return stage.found or int(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
