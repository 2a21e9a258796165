"""The training loop of both models: AdamW, warm-up and linear decay, the best weights kept.

The loop knows neither data nor loss: `loss_at(update)` gives the loss, and what it gives depends
on the number of the update alone. A run that continues from a checkpoint therefore ends at the
very weights of a run that was never interrupted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Required, TypedDict, Unpack

import torch
from torch import Tensor, nn
from tqdm import tqdm

from exemplar import seeding
from exemplar.data.io import atomic_folder, write_json
from exemplar.models import transformers_alone
from exemplar.training import checkpoint as checkpoints
from exemplar.training.checkpoint import State
from exemplar.training.optimisation import (
    check_settings,
    learning_rate_at,
    make_optimizer,
    seeded,
)
from exemplar.training.ranks import ALONE, Ranks
from exemplar.training.updating import update_weights

HELD_OUT = "held_out/"
"""Prefix of figures on held-out queries, in history and summary."""

BEFORE = "before/"
"""Prefix of the same figures before the first update, in the summary."""


_TIMES = ("seconds", "updates_per_second")


@dataclass(frozen=True)
class TrainingReport:
    """What a training leaves besides weights; the content of `training.json`.

    `history`: rows with `update` (updates done) and either the means since the last such row
    (`loss` and its parts, `lr`, `grad_norm` before clipping; `seconds` since the start) or figures
    on held-out queries (`held_out/...`). `summary`: the figures of the weights that were kept
    (`held_out/...`) and of those before training (`before/...`), `best_update`, counts, time.
    """

    history: list[dict[str, float]]
    summary: dict[str, Any]

    def headline(self, *names: str) -> dict[str, Any]:
        """Return what is worth a line: counts, time, and some held-out figures by name."""
        kept = ("num_updates", "best_update", "num_queries", "num_held_out", "dtype")
        held_out = {
            name: self.summary[HELD_OUT + name]
            for name in ("loss", *names)
            if HELD_OUT + name in self.summary
        }
        counts = {name: self.summary[name] for name in kept if name in self.summary}
        return {**counts, **held_out, "updates_per_second": self.summary["updates_per_second"]}

    def write(self, folder: Path) -> None:
        """Write `training.json` into a model folder, without times: equal inputs, equal bytes."""
        summary = {name: value for name, value in self.summary.items() if name not in _TIMES}
        history = [
            {name: value for name, value in row.items() if name not in _TIMES}
            for row in self.history
        ]
        write_json(folder / "training.json", {"summary": summary, "history": history})


class Trainee(Protocol):
    """A model with what belongs to it: the cross-encoder or the bi-encoder."""

    model: Any
    dtype: str

    def save(self, folder: Path) -> None:
        """Write all that it takes to load it again."""


class Lesson(Protocol):
    """What a model is taught, and how it is examined.

    `counts`: facts for the summary. `data`: all records behind it, to tell checkpoints apart.
    """

    counts: dict[str, int]
    data: Sequence[object]

    def loss_at(self, update: int) -> Mapping[str, Tensor]:
        """Return "loss" and its parts for update 0, 1, ..."""

    def evaluate(self) -> dict[str, float]:
        """Return figures on held-out queries, among them "loss"."""


class Options(TypedDict, total=False):
    """Keyword arguments of `train` that the trainings of both models pass through.

    `warmup`, `eval_every`, `log_every`, `save_every` count updates; `clip` bounds the norm of
    the gradient; `checkpoint` is a file; `progress` names the progress bar, None for none.
    """

    num_updates: Required[int]
    learning_rate: Required[float]
    warmup: Required[int]
    eval_every: Required[int]
    clip: float
    weight_decay: float
    log_every: int
    checkpoint: Path | None
    save_every: int
    progress: str | None


def train(
    model: nn.Module,
    loss_at: Callable[[int], Mapping[str, Tensor]],
    evaluate: Callable[[], dict[str, float]],
    *,
    best_by: str,
    num_updates: int,
    learning_rate: float,
    warmup: int,
    eval_every: int,
    clip: float = 1.0,
    weight_decay: float = 0.0,
    log_every: int = 10,
    checkpoint: Path | None = None,
    save_every: int = 200,
    progress: str | None = None,
    seed: int = 0,
    identity: str = "",
    ranks: Ranks = ALONE,
) -> TrainingReport:
    """Train `model` in place and leave it with its best weights, in evaluation mode.

    `loss_at(update)`, update = 0, 1, ..., returns "loss" and the parts to record. `evaluate()`
    returns figures on held-out queries, among them "loss"; it is asked before the first update,
    every `eval_every` updates and after the last. The weights with the highest `best_by` are kept;
    of equal ones those with the lower "loss", then the earlier. Dropout is seeded by `seed` and
    the number of the update.

    With `checkpoint` the whole state is saved every `save_every` updates, and a later call with
    the same settings and `identity` (a text that tells data and models apart) continues from
    there; the caller deletes the file once the model is safe. With several `ranks` the first one
    alone shows progress, writes and reads the checkpoint, and judges; the others follow it. Raises
    `TrainingError` where loss or gradient is not finite, on settings that cannot be, and where
    ranks read different things.
    """
    check_settings(num_updates, learning_rate, warmup, clip, eval_every)
    optimizer = make_optimizer(model, weight_decay)
    identity = checkpoints.identity_of(
        identity, seed, num_updates, learning_rate, warmup, eval_every, clip, weight_decay
    )
    ranks.require_same(identity)
    ranks.copy_from_first(model)
    found = checkpoints.read(checkpoint, identity) if ranks.is_first else None
    found = ranks.from_first(found)
    if found is None:
        state = State()
        _evaluate(model, evaluate, best_by, state, ranks)
    else:
        state = checkpoints.restore(found, model, optimizer)
    started = time.perf_counter() - state.seconds
    model.train()
    with tqdm(
        total=num_updates,
        initial=state.update,
        desc=progress,
        disable=progress is None or not ranks.is_first,
        unit="upd",
    ) as bar:
        while state.update < num_updates:
            lr = learning_rate_at(
                state.update, peak=learning_rate, warmup=warmup, num_updates=num_updates
            )
            with seeded(seed, "dropout", state.update, *ranks.draw):
                row = update_weights(
                    model, optimizer, loss_at, state.update, lr=lr, clip=clip, ranks=ranks
                )
            state.update += 1
            state.window.append(row)
            state.seconds = time.perf_counter() - started
            bar.set_postfix(loss=f"{row['loss']:.4g}", refresh=False)
            bar.update()
            last = state.update == num_updates
            if last or state.update % log_every == 0:
                _close_window(state)
            if last or state.update % eval_every == 0:
                _evaluate(model, evaluate, best_by, state, ranks)
            due = not last and state.update % save_every == 0
            if checkpoint is not None and due and ranks.is_first:
                checkpoints.save(checkpoint, identity, model, optimizer, state)
    model.load_state_dict(state.best_weights)
    model.eval()
    return TrainingReport(state.history, _summary(state, time.perf_counter() - started))


def train_into(
    out: Path,
    trainee: Trainee,
    lesson: Lesson,
    *,
    best_by: str,
    seeds: Sequence[object],
    settings: Sequence[object],
    ranks: Ranks = ALONE,
    **options: Unpack[Options],
) -> TrainingReport:
    """Train `trainee` by `lesson` and write the folder `out`: the model and `training.json`.

    `seeds` and `settings`: what a checkpoint must have been made with to be continued. The
    checkpoint is deleted once the folder is in place. Of several `ranks` the first one alone
    writes. Errors as for `train`.
    """
    checkpoint = options.get("checkpoint")
    compared = checkpoint is not None or ranks.size > 1
    report = train(
        trainee.model,
        lesson.loss_at,
        lesson.evaluate,
        best_by=best_by,
        seed=seeding.derive_seed(*seeds),
        identity=checkpoints.identity_of(seeds, settings, lesson.data) if compared else "",
        ranks=ranks,
        **options,
    )
    report.summary.update(lesson.counts, dtype=trainee.dtype)
    if not ranks.is_first:
        return report
    with transformers_alone(), atomic_folder(out) as folder:
        trainee.save(folder)
        report.write(folder)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return report


def _close_window(state: State) -> None:
    rows = state.window
    means = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
    state.history.append({"update": state.update, **means, "seconds": round(state.seconds, 3)})
    state.window = []


def _evaluate(
    model: nn.Module,
    evaluate: Callable[[], dict[str, float]],
    best_by: str,
    state: State,
    ranks: Ranks,
) -> None:
    """Ask for figures, record them, and keep the weights if they are the best so far.

    The first rank's figures hold for all, so that all keep the same weights.
    """
    model.eval()
    with torch.no_grad():
        figures = ranks.from_first(evaluate())
    model.train()
    state.history.append(
        {"update": state.update, **{HELD_OUT + name: value for name, value in figures.items()}}
    )
    if state.update == 0:
        state.before = figures
    best = state.best_figures
    if not best or (figures[best_by], -figures["loss"]) > (best[best_by], -best["loss"]):
        state.best_update, state.best_figures = state.update, figures
        state.best_weights = {
            name: value.detach().to("cpu", copy=True) for name, value in model.state_dict().items()
        }


def _summary(state: State, seconds: float) -> dict[str, Any]:
    return {
        "num_updates": state.update,
        "best_update": state.best_update,
        **{HELD_OUT + name: value for name, value in state.best_figures.items()},
        **{BEFORE + name: value for name, value in state.before.items()},
        "seconds": round(seconds, 3),
        "updates_per_second": round(state.update / seconds, 4),
    }
