"""The names of the steps, and where each file of a run lies, below one root (as in dvc.yaml)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from exemplar.config import Params


STEPS = (
    "download_data",
    "bm25_candidates",
    "llm_scoring",
    "reward_training",
    "reward_scoring",
    "kd_training",
    "search",
    "evaluation",
    "promotion",
    "report",
)
"""In the order of a round. Each names a function, a command, a section of params.yaml."""


@dataclass(frozen=True)
class Layout:
    """Paths of one workspace."""

    root: Path

    @property
    def data(self) -> Path:
        """Folder of download_data."""
        return self.root / "data"

    def round(self, number: int) -> Path:
        """Folder of a round, 1-based."""
        return self.root / "rounds" / f"r{number}"

    def rounds(self) -> dict[int, Path]:
        """Folders of the rounds that there are, by their numbers, in order."""
        found = {int(path.name[1:]): path for path in (self.root / "rounds").glob("r[0-9]*")}
        return dict(sorted(found.items()))

    def baseline(self, name: str) -> Path:
        """Folder of a baseline."""
        return self.root / "baselines" / name

    def cost(self, step: str, target: str = "") -> Path:
        """File with the seconds and counts of one step."""
        return self.root / "costs" / target / f"{step}.json"

    @property
    def report(self) -> Path:
        """The report page."""
        return self.root / "report.html"

    @property
    def metrics(self) -> Path:
        """Folder of the figures by round."""
        return self.root / "metrics"

    @property
    def plots(self) -> Path:
        """Folder of pictures."""
        return self.root / "plots"


@dataclass(frozen=True)
class Workspace:
    """What every command opens: the settings' file and the root of all outputs."""

    params_path: Path
    layout: Layout

    @property
    def params(self) -> Params:
        """params.yaml, read and checked."""
        from exemplar.config import load_params

        return load_params(self.params_path)
