"""The released files, row by row: what each becomes here, and what has to be kept as it stands.

Nothing is merged, cut or left out for its content, as the scores name passages by their place.
Each row's record is turned back at once; where the line is not met exactly, or no record can hold
the row, the line itself is kept, so that the files can be written back as they were.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from exemplar.data.checks import check_record
from exemplar.data.release import rows
from exemplar.data.release.rows import Numbering, Values
from exemplar.data.splits import Numbered
from exemplar.data.tables import read_json_lines
from exemplar.errors import DataError
from exemplar.records import Candidates, Example, Rewards


@dataclass
class Facts:
    """What it takes to write a file back: its rows, the order of its columns, its sha256."""

    rows: int = 0
    columns: list[str] = field(default_factory=list)
    sha256: str = ""


@dataclass(frozen=True)
class Kept:
    """A line that stands in for its row; `recorded`: whether the row has a record all the same."""

    file: str
    row: int
    line: str
    recorded: bool


class Release:
    """The files of a release, of which `tasks` are read; None: all.

    `train` holds all training queries under the ids of their passages, and `test` all test
    queries, both with their rows; `numbering` tells which passages are whose. `facts`, `kept` and
    `pool_counts` are complete when everything was read.
    """

    def __init__(
        self,
        files: Mapping[str, Path],
        tasks: Collection[str] | None = None,
        *,
        progress: bool = False,
    ) -> None:
        self._files, self._progress = files, progress
        self.facts: dict[str, Facts] = {}
        self.kept: list[Kept] = []
        self.pool_counts: Counter[str] = Counter()
        self._absent: set[int] = set()
        self.numbering = self._survey()
        self._tasks = None if tasks is None else frozenset(tasks)
        self.train = list(self._questions("train"))
        self.test = list(self._questions("test"))
        self._train_by_id = {one.example.example_id: one.example for one in self.train}

    @property
    def whole(self) -> bool:
        """Whether every task is read, so that the files can be written back."""
        return self._tasks is None

    def reads(self, task: str) -> bool:
        """Whether a task's rows are read."""
        return self._tasks is None or task in self._tasks

    def pool(self) -> Iterator[Example]:
        """Yield all passages as pool examples; training queries with all that is known of them.

        Raises `DataError` where a training query is not the passage that its id names.
        """
        met = 0
        for place, line, values in self._rows("passages"):
            try:
                example = self._usable(rows.passage(values, place))
            except DataError as error:
                raise self._refusal("passages", place, str(error)) from None
            asked = self._train_by_id.get(str(place))
            if asked is not None:
                met += 1
                if asked.text != values["contents"]:
                    raise self._refusal(
                        "passages",
                        place,
                        f"training query {self.numbering.query_id(asked)} is {asked.text[:80]!r}, "
                        f"its passage {values['contents'][:80]!r}. The files do not belong "
                        "together. `tasks` can leave a task out.",
                    )
                example = asked
            if example is None:
                self._absent.add(place)
            if (
                example is None
                or self._line("passages", rows.passage_values(example, place)) != line
            ):
                self._keep("passages", place, line, recorded=example is not None)
            if example is not None:
                self.pool_counts[example.task] += 1
                yield example
        if met < len(self.train):
            raise DataError(
                f"{self._files['train']}: {len(self.train) - met} training queries name passages "
                f"beyond the {self.numbering.total} that there are. The files do not belong "
                "together."
            )

    def records(self, name: str, kind: type[Candidates] | type[Rewards]) -> Iterator[Any]:
        """Yield the records of a scored file in its order, once the pool was read.

        Passages that the pool lacks, since their task is not read or they say nothing, are not
        among the candidates.
        """
        for row, line, values in self._rows(name):
            try:
                ids, scores = rows.scored(values)
                own = str(self.numbering.passage_of(str(values["query_id"]), values["task_name"]))
                places = [int(number) for number in ids]
            except (DataError, ValueError) as error:
                raise self._refusal(name, row, str(error)) from None
            if places and not 0 <= min(places) <= max(places) < self.numbering.total:
                raise self._refusal(
                    name,
                    row,
                    f"doc_ids reach {max(places)}; there are {self.numbering.total} passages.",
                )
            held = [self._holds(place) for place in places]
            record = self._usable(
                kind(
                    own,
                    tuple(number for number, here in zip(ids, held, strict=True) if here),
                    tuple(score for score, here in zip(scores, held, strict=True) if here),
                )
            )
            if not self._holds(int(own)):
                record = None
            if record is None or self._scored_line(name, record) != line:
                self._keep(name, row, line, recorded=record is not None)
            if record is not None:
                yield record

    def described(self) -> dict[str, dict[str, Any]]:
        """Return the facts of all files that were read, for the manifest."""
        return {name: asdict(facts) for name, facts in self.facts.items()}

    def _survey(self) -> Numbering:
        starts: dict[str, int] = {}
        last, total = "", 0
        for place, _, values in self._all_rows("passages"):
            task, number = values["task_name"], values.get("id", str(place))
            if str(number) != str(place):
                raise self._refusal(
                    "passages", place, f"its id is {number!r}; a passage's id must be its place."
                )
            if task != last and starts.setdefault(task, place) != place:
                raise self._refusal(
                    "passages", place, f"task {task!r} goes on; its passages must lie together."
                )
            last, total = task, place + 1
        return Numbering(starts, total)

    def _questions(self, name: str) -> Iterator[Numbered]:
        """Yield the queries of train or test with their rows."""
        for row, line, values in self._rows(name):
            try:
                task = str(values["task_name"])
                number = str(values["query_id"])
                if name == "train":
                    number = str(self.numbering.passage_of(number, task))
                example = self._usable(rows.question(values, number))
            except DataError as error:
                raise self._refusal(name, row, str(error)) from None
            if example is None or self._question_line(name, example) != line:
                self._keep(name, row, line, recorded=example is not None)
            if example is not None:
                yield Numbered(row, example)

    def _rows(self, name: str) -> Iterator[tuple[int, str, Values]]:
        for row, line, values in self._all_rows(name):
            if self.reads(values["task_name"]):
                yield row, line, values

    def _all_rows(self, name: str) -> Iterator[tuple[int, str, Values]]:
        """Yield row, line and values, and note the facts of the file."""
        digest, facts, path = hashlib.sha256(), Facts(), self._files[name]
        read = read_json_lines(path)
        for row, (line, values) in enumerate(
            tqdm(read, desc=path.name, disable=not self._progress, unit="row", unit_scale=True)
        ):
            if not facts.columns:
                facts.columns = list(values)
                self.facts[name] = facts
            known = rows.COLUMNS[name] - ({"id"} if "id" not in facts.columns else set())
            if values.keys() != known:
                expected = ", ".join(sorted(known))
                raise self._refusal(name, row, f"expected {expected}, got {', '.join(values)}.")
            if not isinstance(values["task_name"], str):
                raise self._refusal(name, row, f"task_name is {values['task_name']!r}, not a text.")
            digest.update(line.encode())
            yield row, line, values
        if not facts.columns:
            raise DataError(f"{path} is empty.")
        facts.rows, facts.sha256 = row + 1, digest.hexdigest()

    def _line(self, name: str, values: Values) -> str:
        return rows.line(values, self.facts[name].columns)

    def _question_line(self, name: str, example: Example) -> str:
        number = example.example_id if name == "test" else self.numbering.query_id(example)
        return self._line(name, rows.question_values(example, number))

    def _scored_line(self, name: str, record: Candidates | Rewards) -> str | None:
        query = self._train_by_id.get(record.query_id)
        if query is None:
            return None
        values = rows.question_values(query, self.numbering.query_id(query))
        ids, scores = record.candidate_ids, rows.scores_of(record)
        return self._line(name, rows.scored_values(values, ids, scores))

    def _holds(self, place: int) -> bool:
        """Whether the pool has the passage."""
        if place in self._absent:
            return False
        return self.whole or self.reads(self.numbering.task_of(place))

    def _usable(self, record: Any) -> Any:
        """Return the record, or None where our own rules refuse it: a blank text, a repeated id."""
        try:
            check_record(record)
        except DataError:
            return None
        return record

    def _keep(self, name: str, row: int, line: str, *, recorded: bool) -> None:
        if self.whole:
            self.kept.append(Kept(name, row, line, recorded))

    def _refusal(self, name: str, row: int, why: str) -> DataError:
        return DataError(f"{self._files[name]}, row {row} (from 0): {why}")
