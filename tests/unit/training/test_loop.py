import json
import math

import pytest
import torch

from exemplar.errors import TrainingError
from exemplar.training import loop

OPTIONS = {"num_updates": 24, "learning_rate": 0.05, "warmup": 3, "eval_every": 6}


class Toy:
    """A linear model with dropout that is to fit random numbers; update `dies_at` kills it."""

    def __init__(self, dies_at=None, nan_at=None):
        self.dies_at, self.nan_at = dies_at, nan_at
        draw = torch.Generator().manual_seed(0)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(4, 16), torch.nn.Dropout(0.2), torch.nn.ReLU(), torch.nn.Linear(16, 1)
        )
        for weight in self.model.parameters():
            weight.data = torch.randn(weight.shape, generator=draw) * 0.3
        self.inputs = torch.randn(24, 10, 4, generator=draw)
        self.targets = self.inputs.sum(dim=2, keepdim=True)
        self.evaluated = []

    def loss_at(self, update):
        if update == self.dies_at:
            raise KeyboardInterrupt
        error = (self.model(self.inputs[update]) - self.targets[update]) ** 2
        loss = error.mean() * (float("nan") if update == self.nan_at else 1.0)
        return {"loss": loss, "part": error.max()}

    def evaluate(self):
        assert not self.model.training
        error = ((self.model(self.inputs) - self.targets) ** 2).mean().item()
        self.evaluated.append(error)
        return {"score": -error, "loss": error}

    def train(self, **options):
        options = {**OPTIONS, "best_by": "score", **options}
        return loop.train(self.model, self.loss_at, self.evaluate, **options)

    def weights(self):
        return [weight.detach().clone() for weight in self.model.parameters()]


def without_time(rows):
    return [{name: v for name, v in row.items() if "second" not in name} for row in rows]


def test_training_lowers_the_loss_and_tells_how():
    """Without a history nobody can see where a training went wrong."""
    report = Toy().train(log_every=4)
    rows = [row for row in report.history if "loss" in row]
    assert [row["update"] for row in rows] == [4, 8, 12, 16, 20, 24]
    assert set(rows[0]) == {"update", "loss", "part", "lr", "grad_norm", "seconds"}
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    held_out = [row["update"] for row in report.history if "held_out/score" in row]
    assert held_out == [0, 6, 12, 18, 24]
    assert report.summary["before/score"] < report.summary["held_out/score"]
    assert report.summary["num_updates"] == 24


def test_history_rows_are_means_and_the_norm_is_that_before_clipping():
    """A last value in place of the mean jumps about; a clipped norm hides an explosion."""
    toy = Toy()
    report = toy.train(log_every=24, clip=1e-3)
    again, losses = Toy(), []

    def noting(update):
        parts = again.loss_at(update)
        losses.append(parts["loss"].item())
        return parts

    loop.train(again.model, noting, again.evaluate, best_by="score", clip=1e-3, **OPTIONS)
    row = next(row for row in report.history if "loss" in row)
    assert row["loss"] == pytest.approx(sum(losses) / 24, rel=1e-6)
    assert row["grad_norm"] > 1e-2


def test_a_killed_training_ends_at_the_weights_of_one_that_was_not(tmp_path):
    """After a kill at hour ten the choice must not be between starting anew and other results."""
    whole = Toy()
    expected = whole.train(save_every=5, checkpoint=tmp_path / "whole")
    killed = Toy(dies_at=17)
    with pytest.raises(KeyboardInterrupt):
        killed.train(save_every=5, checkpoint=tmp_path / "state")
    continued = Toy(dies_at=14)  # update 14 is done: asking for it again would die
    found = continued.train(save_every=5, checkpoint=tmp_path / "state")
    assert all(map(torch.equal, whole.weights(), continued.weights()))
    assert without_time(found.history) == without_time(expected.history)
    assert without_time([found.summary]) == without_time([expected.summary])


def test_a_checkpoint_of_other_settings_is_left_aside(tmp_path):
    """Half a run under one learning rate and half under another is neither run."""
    for change in ({"learning_rate": 0.01}, {"identity": "other data"}):
        with pytest.raises(KeyboardInterrupt):
            Toy(dies_at=17).train(save_every=5, checkpoint=tmp_path / "state")
        anew, fresh = Toy(), Toy()
        anew.train(save_every=5, checkpoint=tmp_path / "state", **change)
        fresh.train(**change)
        assert all(map(torch.equal, anew.weights(), fresh.weights()))


def test_a_damaged_checkpoint_is_one_clear_error(tmp_path):
    """A traceback from inside pickle does not say that deleting the file helps."""
    (tmp_path / "state").write_bytes(b"no checkpoint")
    with pytest.raises(TrainingError, match="Delete it"):
        Toy().train(checkpoint=tmp_path / "state")


def test_two_runs_are_equal_and_another_seed_is_not():
    """Dropout drawn from global state makes every run a different one."""
    runs = [Toy(), Toy(), Toy()]
    torch.manual_seed(1)
    runs[0].train(seed=1)
    torch.manual_seed(2)
    runs[1].train(seed=1)
    runs[2].train(seed=2)
    first, second, other = (run.weights() for run in runs)
    assert all(map(torch.equal, first, second))
    assert not all(map(torch.equal, first, other))


def test_the_best_weights_are_kept_not_the_last():
    """A training that overshoots would ship what it ended with."""
    toy = Toy()
    report = toy.train(learning_rate=5.0, warmup=0)
    best = min(toy.evaluated)
    assert toy.evaluated[-1] > best
    assert report.summary["best_update"] == 6 * toy.evaluated.index(best)
    assert report.summary["held_out/score"] == -best
    assert toy.evaluate()["loss"] == best


def test_equal_figures_go_to_the_lower_loss():
    """A share over few queries is often equal; the first of equals is then the least trained."""
    toy = Toy()
    report = loop.train(
        toy.model,
        toy.loss_at,
        lambda: {"score": 1.0, "loss": toy.evaluate()["loss"]},
        best_by="score",
        **OPTIONS,
    )
    assert report.summary["held_out/loss"] == min(toy.evaluated)
    assert report.summary["best_update"] > 0


def test_nan_stops_training_with_the_number_of_the_update():
    """Hours of training on NaN look like training."""
    with pytest.raises(TrainingError, match=r"update 7: the loss is nan.*learning rate"):
        Toy(nan_at=7).train()


def test_an_infinite_gradient_stops_training_before_it_reaches_the_weights():
    """Clipping an infinite norm multiplies every gradient by zero or NaN, in silence."""
    weight = torch.nn.Parameter(torch.zeros(1))
    model = torch.nn.ParameterList([weight])
    with pytest.raises(TrainingError, match=r"update 0: the gradient norm is (inf|nan)"):
        loop.train(
            model,
            lambda update: {"loss": weight.abs().sqrt().sum()},
            lambda: {"score": 0.0, "loss": 0.0},
            best_by="score",
            **OPTIONS,
        )
    assert weight.item() == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_updates", 0), ("warmup", 24), ("learning_rate", 0.0), ("clip", 0.0), ("eval_every", 0)],
)
def test_settings_that_cannot_be_are_refused_by_name(name, value):
    """A warm-up as long as the training never reaches the learning rate that was asked for."""
    with pytest.raises(TrainingError, match=f"{name} is {value}"):
        Toy().train(**{name: value})


def test_the_learning_rate_of_the_history_is_that_of_the_schedule():
    """A schedule that the optimizer never hears of leaves the rate constant."""
    report = Toy().train(log_every=1)
    rates = [row["lr"] for row in report.history if "lr" in row]
    assert max(rates) == pytest.approx(0.05)
    assert rates[0] == pytest.approx(0.05 / 4)
    assert rates[-1] == pytest.approx(0.05 / 21)


def test_the_folder_holds_model_and_report_and_the_checkpoint_is_gone(tmp_path):
    """A checkpoint left behind costs three times the model; a missing report hides the training."""

    class Trainee:
        dtype = "float32"

        def __init__(self, model):
            self.model = model

        def save(self, folder):
            torch.save(self.model.state_dict(), folder / "weights")

    class Lesson(Toy):
        counts = {"num_queries": 3}  # noqa: RUF012
        data = ()

    lesson = Lesson()
    state = tmp_path / "state"
    options = {**OPTIONS, "checkpoint": state, "save_every": 5}
    report = loop.train_into(
        tmp_path / "out",
        Trainee(lesson.model),
        lesson,
        best_by="score",
        seeds=(0, "x"),
        settings=(),
        **options,
    )
    written = json.loads((tmp_path / "out" / "training.json").read_text())
    times = {"seconds", "updates_per_second"}  # equal inputs must give equal files

    def timeless(row):
        return {name: value for name, value in row.items() if name not in times}

    assert written["summary"] == timeless(report.summary)
    assert written["history"] == [timeless(row) for row in report.history]
    assert written["summary"]["num_queries"] == 3
    assert math.isfinite(report.summary["updates_per_second"])
    saved = torch.load(tmp_path / "out" / "weights")
    assert all(map(torch.equal, saved.values(), lesson.weights()))
    assert not state.exists()
