"""A tiny BERT with a word-level tokenizer, and a toy relation that it can learn in seconds."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import pytest

from exemplar.records import OTHER_LABEL, Candidates, Example, LlmScores, Rewards

NOISE = [f"noise{i}" for i in range(30)]
CUES = {"red": "apple", "blue": "train", "green": "violin"}


@pytest.fixture(scope="session")
def tiny_bert(save_bert, tmp_path_factory) -> Path:
    """A folder with a random BERT of 3 layers, as transformers writes it."""
    words = [*NOISE, *CUES, *CUES.values(), "good", "bad", "say", "a", "b"]
    folder = tmp_path_factory.mktemp("models") / "tiny_bert"
    return save_bert(folder, words, width=32, layers=3, positions=48)


@dataclass(frozen=True)
class World:
    """Examples and what an LM and a reward model would say of them."""

    examples_by_id: dict[str, Example]
    scores: list[LlmScores]
    rewards: list[Rewards]
    candidates: list[Candidates]


@pytest.fixture(scope="session")
def world() -> World:
    """For the LM a candidate with the word "good" helps; for the reward model one of like cue."""
    draw = random.Random(7)
    pool = []
    for number in range(90):
        label = draw.choice(sorted(CUES))
        words = [*draw.sample(NOISE, draw.randint(2, 5)), CUES[label], draw.choice(["good", "bad"])]
        draw.shuffle(words)
        task = f"task{number % 2}"
        pool.append(Example(f"e{number}", task, "say " + " ".join(words), (label,)))
    scores, rewards, candidates = [], [], []
    for query in pool[:40]:
        own = [each for each in pool if each is not query and each.task == query.task]
        drawn = draw.sample(own, 10)
        ids = tuple(each.example_id for each in drawn)
        good = [float("good" in each.query) + draw.gauss(0, 0.05) for each in drawn]
        reasons = tuple("" if "good" in each.query else OTHER_LABEL for each in drawn)
        like = [4.0 * (each.answer == query.answer) + draw.gauss(0, 0.3) for each in drawn]
        scores.append(LlmScores(query.example_id, ids, tuple(good), reasons))
        rewards.append(Rewards(query.example_id, ids, tuple(like)))
        candidates.append(Candidates(query.example_id, ids, tuple(0.0 for _ in ids)))
    return World({each.example_id: each for each in pool}, scores, rewards, candidates)
