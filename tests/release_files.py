"""Files in the format of the paper's authors, of our own writing and at random.

Made after their code (microsoft/LMOps, llm_retriever: misc/format_all_tasks.py, src/utils.py), with
nothing of the package's: passages in blocks of tasks, ids running over all of them, queries drawn
from all training rows but named by their row there, scored files in an order of their own.
"""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

WORDS = [
    "the",
    "parcel",
    "cup",
    "river",
    "bread",
    "train",
    "story",
    "blue",
    "old",
    "quiet",
    "late",
    "garden",
    "shop",
    "warm",
    "über",
    "naïve",
]
LABELS = {
    "ag_news": ["World", "Sports", "Business", "Technology"],
    "mnli": ["Yes", "Maybe", "No"],
    "qnli": ["Yes", "No"],
}
TASKS = ("ag_news", "copa", "mnli", "natural_questions", "qnli", "squad_v1", "winogrande")
TEST_TASKS = (
    "ag_news",
    "copa",
    "mnli_m",
    "natural_questions",
    "qnli",
    "squad_v1",
    "winogrande",
    "wsc273",
)
ROWS, TRAIN_ROWS, TEST_ROWS, DOCS = 24, 14, 3, 9


def write_release_files(folder: Path, *, odd: bool = False, seed: int = 5) -> Path:
    """Write the six files. `odd`: with rows that no record of ours can hold as they stand."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows = {task: [_row(rng, task, "train", i) for i in range(ROWS)] for task in TASKS}
    if odd:
        blank = [rows["natural_questions"][4], rows["ag_news"][5]]
        for row in blank:
            row["answers"] = ["\n"]  # nothing but a line break
    passages = [_passage(row) for task in TASKS for row in rows[task]]
    passages = [{**one, "id": str(number)} for number, one in enumerate(passages)]
    train = [row for task in TASKS for row in rng.sample(rows[task], TRAIN_ROWS)]
    if odd:
        train += [row for row in blank if row not in train]
    test = [_row(rng, task, "test", i) for task in TEST_TASKS for i in range(TEST_ROWS)]
    _write(folder / "passages.jsonl.gz", passages)
    _write(folder / "train.jsonl.gz", train)
    _write(folder / "test.jsonl.gz", test)
    for name in ("bm25_train", "kd_bm25_train", "kd_it2_train"):
        scored = [_scored(rng, row, passages) for row in train]
        rng.shuffle(scored)
        if odd:
            scored[3]["doc_scores"][0] = -4  # a whole number, as no float is written
            scored[5]["doc_ids"].append(scored[5]["doc_ids"][0])
            scored[5]["doc_scores"].append(0.5)
        _write(folder / f"{name}.jsonl.gz", scored)
    return folder


def content(path: Path) -> bytes:
    """Return what is in a compressed file."""
    with gzip.open(path) as file:
        return file.read()


def _row(rng: random.Random, task: str, split: str, number: int) -> dict[str, Any]:
    text = " ".join(rng.choice(WORDS) for _ in range(rng.randint(4, 9)))
    query = f'{task} {split} {number}: "{text}"'
    options, family = [""], {"mnli_m": "mnli", "wsc273": "winogrande"}.get(task, task)
    if family in ("copa", "winogrande"):
        options = [f"so {rng.choice(WORDS)}.", f"then {rng.choice(WORDS)}!"]
        answers = [rng.choice("AB")]
    elif family in LABELS:
        answers = [LABELS[family][number % len(LABELS[family])]]
    else:
        query += "\nQuestion?"
        answers = [" ".join(rng.sample(WORDS, 2)) for _ in range(rng.randint(1, 3))]
    return {
        "query": query,
        "options": options,
        "answers": answers,
        "task_name": task,
        "query_id": f"{task}_{split}_{number}",
    }


def _passage(row: dict[str, Any]) -> dict[str, Any]:
    answer = row["answers"][0]
    if len(row["options"]) > 1:
        answer = row["options"]["AB".index(answer)]
    return {"task_name": row["task_name"], "contents": f"{row['query']}\n{answer}"}


def _scored(
    rng: random.Random, row: dict[str, Any], passages: list[dict[str, Any]]
) -> dict[str, Any]:
    own = [one["id"] for one in passages if one["task_name"] == row["task_name"]]
    own = [
        number for number in own if not passages[int(number)]["contents"].startswith(row["query"])
    ]
    others = rng.sample([one["id"] for one in passages if one["id"] not in own], 1)
    ids = rng.sample(own, DOCS) + others
    return {**row, "doc_ids": ids, "doc_scores": [round(rng.gauss(0, 3), 5) for _ in ids]}


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    with gzip.open(path, "wt", encoding="utf-8", compresslevel=1) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")))
            file.write("\n")
