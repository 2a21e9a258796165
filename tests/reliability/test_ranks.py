"""Claims about training in two processes: what comes out is what one process gives.

Under torchrun this file is what the two do (`torchrun --nproc-per-node=2 test_ranks.py PARAMS ROOT
OUT`): starting processes takes seconds, so they do in one life all that the tests look at.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from exemplar import cli, launch
from exemplar.config import load_params
from exemplar.data.dataset import read_dataset
from exemplar.errors import TrainingError
from exemplar.layout import Layout
from exemplar.records import LlmScores, Rewards
from exemplar.training.distill import train_retriever
from exemplar.training.ranks import ALONE, Ranks
from exemplar.training.reward import train_reward_model

MODELS = ("reward_model", "retriever")
UPDATES = 4
KILLED_AT = 5
SAVED_AT = 3

# Batches of 5 queries: texts and pairs do not come out even. A temperature of 0.01, the default,
# would magnify float32's own rounding a hundred times in the loss, a high learning rate in Adam.
CHANGES = {
    "reward_training.learning_rate": 1e-4,
    "kd_training.learning_rate": 1e-4,
    "reward_training.batch_size": 5,
    "reward_training.dropout": 0.0,
    "kd_training.batch_size": 5,
    "kd_training.dropout": 0.0,
    "kd_training.temperature": 0.1,
}


class KilledError(Exception):
    """Stands for a kill between two updates."""


def train(model, profile, layout, out, ranks, **changes):
    """Train the reward model or the retriever of round 1 on the files of a finished run."""
    dataset = read_dataset(layout.data)
    changes = {"seed": profile.seed, "round": 1, "ranks": ranks, **changes}
    if model == "reward_model":
        settings = profile.reward_training.model_dump(exclude={"init", "min_accuracy", "clip_norm"})
        scores = dataset.read(layout.round(1) / "llm_scores.parquet", LlmScores)
        examples = dataset.pool_examples(scores)
        init = profile.reward_training.init
        return train_reward_model(init, examples, scores, out, **settings | changes)
    settings = profile.kd_training.model_dump(exclude={"init", "clip_norm"})
    rewards = dataset.read(layout.round(1) / "rewards.parquet", Rewards)
    examples, init = dataset.pool_examples(rewards), profile.kd_training.init
    return train_retriever(init, examples, [rewards], out, **settings | changes)


def record(model, profile, layout, folder, ranks):
    """Train, and keep history, gradients (as the optimizer sees them) and weights by update."""
    gradients, weights = [], []

    def of(optimizer):
        return [weight for group in optimizer.param_groups for weight in group["params"]]

    hooks = [
        register_optimizer_step_pre_hook(
            lambda optimizer, *_: gradients.append(
                [torch.zeros(()) if w.grad is None else w.grad.clone() for w in of(optimizer)]
            )
        ),
        register_optimizer_step_post_hook(
            lambda optimizer, *_: weights.append([w.detach().clone() for w in of(optimizer)])
        ),
    ]
    report = train(model, profile, layout, folder / model, ranks, log_every=1)
    for hook in hooks:
        hook.remove()
    told = {"history": report.history, "gradients": gradients, "weights": weights}
    torch.save(told, folder / f"{model}.pt")


def interrupt_and_go_on(profile, layout, folder, ranks):
    """Train with dropout in one go, and again with a kill two updates after a checkpoint."""
    often = {"dropout": 0.1, "num_updates": 8, "save_every": SAVED_AT}
    train("retriever", profile, layout, folder / "in_one_go", ranks, **often)
    updates = []

    def kill(*_):
        updates.append(1)
        if len(updates) == KILLED_AT:
            raise KilledError

    often["checkpoint"] = folder / "checkpoint"
    hook = register_optimizer_step_pre_hook(kill)
    with pytest.raises(KilledError):
        train("retriever", profile, layout, folder / "continued", ranks, **often)
    hook.remove()
    (folder / "found.json").write_text(json.dumps(sorted(path.name for path in folder.iterdir())))
    again = []
    hook = register_optimizer_step_pre_hook(lambda *_: again.append(1))
    train("retriever", profile, layout, folder / "continued", ranks, **often)
    hook.remove()
    (folder / "updates.json").write_text(json.dumps(len(again)))


def main(params, root, out):
    """What one rank does, in a folder of its own, as on a machine of its own."""
    profile, layout = load_params(Path(params)).active, Layout(Path(root))
    with launch.join() as ranks:
        with pytest.raises(SystemExit) as ended:  # what `python -m exemplar` does
            cli.main(["--params", params, "--root", root, "kd-training", "--round", "1"])
        assert not ended.value.code
        folder = Path(out) / str(ranks.rank)
        folder.mkdir(parents=True)
        for model in MODELS:
            record(model, profile, layout, folder, ranks)
        interrupt_and_go_on(profile, layout, folder, ranks)
        with pytest.raises(TrainingError) as refused:
            ranks.require_same(f"the files of rank {ranks.rank}")
        (folder / "refused.txt").write_text(str(refused.value))
        (folder / "end.txt").write_text(str(time.time()))
        if ranks.rank == 1:
            raise RuntimeError("rank 1 fails alone")
        ranks.gather(torch.zeros(1), 2)  # waits for rank 1, which never comes


def contents(folder):
    """Return the bytes of every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def copy_of(workspace, root, model):
    """Copy a finished run without one model of round 1."""
    shutil.copytree(workspace.root, root, ignore=shutil.ignore_patterns("mlartifacts"))
    shutil.rmtree(root / "rounds/r1" / model)
    return root


@pytest.fixture(scope="module")
def both(workspace, write_params, tmp_path_factory, run_cli):
    """Return a folder with what `one` process and `two` gave, and how torchrun ended."""
    folder = tmp_path_factory.mktemp("ranks")
    params = write_params(folder / "params.yaml", CHANGES)
    copies = [copy_of(workspace, folder / f"run-of-{name}", "retriever") for name in ("one", "two")]
    (copies[1] / "costs/r1/kd_training.json").unlink()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [
        "--monitor-interval=0.1",
        __file__,
        str(params),
        str(copies[1]),
        str(folder / "two"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    ended.at = time.time()
    assert (folder / "two/1/end.txt").exists(), ended.stderr
    (folder / "one").mkdir()
    for model in MODELS:
        record(model, load_params(params).active, workspace.layout, folder / "one", ALONE)
    done = run_cli("--params", params, "--root", copies[0], "kd-training", "--round", 1)
    assert done.code == 0, done.err
    return folder, ended


@pytest.mark.parametrize("model", MODELS)
def test_losses_gradients_and_weights_are_those_of_one_process(both, model):
    """A factor of the number of ranks, or a share weighted wrongly, trains another model."""
    one, two = (torch.load(both[0] / name / f"{model}.pt") for name in ("one", "two/0"))
    assert len(one["history"]) == len(two["history"]) > UPDATES
    for ours, theirs in zip(one["history"], two["history"], strict=True):
        for row in (ours, theirs):
            row.pop("seconds", None)
        assert theirs == pytest.approx(ours, abs=1e-6)  # losses, and norms before clipping
    for kind in ("gradients", "weights"):
        assert len(one[kind]) == len(two[kind]) == UPDATES
    for ours, theirs in zip(one["gradients"], two["gradients"], strict=True):
        assert max(gradient.abs().max() for gradient in ours) > 1e-4
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(b, a, rtol=0, atol=1e-6)
    learned = [gradient.abs().max() > 1e-7 for gradient in one["gradients"][0]]
    # The biases of attention's keys cancel in its softmax. Their gradients are rounding alone,
    # which Adam divides by its own size.
    assert sum(learned) >= 30
    for ours, theirs in zip(one["weights"], two["weights"], strict=True):
        for a, b, counts in zip(ours, theirs, learned, strict=True):
            if counts:
                torch.testing.assert_close(b, a, rtol=0, atol=1e-6)
    first, last = one["weights"][0], one["weights"][-1]
    assert max((b - a).abs().max() for a, b in zip(first, last, strict=True)) > 1e-4


@pytest.mark.parametrize("model", MODELS)
def test_ranks_hold_the_same_weights_to_the_bit(both, model):
    """Ranks that drift apart train several models, of which one is written."""
    first, second = (torch.load(both[0] / "two" / str(n) / f"{model}.pt") for n in (0, 1))
    for kind in ("gradients", "weights"):
        for ours, theirs in zip(first[kind], second[kind], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_killed_training_goes_on_on_all_ranks_from_the_first_one_s_checkpoint(both):
    """With a checkpoint a rank, or one that only some ranks read, ranks would go different ways."""
    first, second = (both[0] / "two" / name for name in ("0", "1"))
    recorded = [f"{model}.pt" for model in MODELS]
    at_the_kill = [json.loads((folder / "found.json").read_text()) for folder in (first, second)]
    assert at_the_kill[0] == sorted(["checkpoint", "in_one_go", *MODELS, *recorded])
    assert at_the_kill[1] == sorted(recorded)  # models and checkpoints are the first rank's alone
    for folder in (first, second):
        assert json.loads((folder / "updates.json").read_text()) == 8 - SAVED_AT
    assert contents(first / "continued") == contents(first / "in_one_go")
    assert (first / "continued/model.safetensors").is_file()
    assert not (first / "checkpoint").exists()


def test_ranks_with_other_files_are_refused(both):
    """One node with last week's data would spoil the model without a word."""
    for rank in ("0", "1"):
        message = (both[0] / "two" / rank / "refused.txt").read_text()
        assert "1 of 2 processes read other data or settings than the first: rank 1" in message


def test_an_error_on_one_rank_ends_all(both):
    """The others would hold their GPUs and wait until somebody looks."""
    root, ended = both
    assert ended.returncode == 1
    assert "rank 1 fails alone" in ended.stderr
    assert ended.at - float((root / "two/1/end.txt").read_text()) < 40 < launch.TIMEOUT.seconds


def test_under_torchrun_a_command_gives_what_it_gives_alone_and_says_so_once(both):
    """Each rank would write the same files, or the one that should would not."""
    one, two = (both[0] / f"run-of-{name}" for name in ("one", "two"))
    retriever = Path("rounds/r1/retriever")
    expected, found = (
        json.loads((run / retriever / "training.json").read_text()) for run in (one, two)
    )
    assert found["summary"] == pytest.approx(expected["summary"], abs=1e-6)
    assert contents(one / retriever).keys() == contents(two / retriever).keys()
    assert not list((two / retriever).parent.glob(".retriever*"))
    assert json.loads((two / "costs/r1/kd_training.json").read_text())["step"] == "kd_training"
    assert both[1].stdout.count("kd_training r1: num_updates 4") == 1


def test_processes_started_by_the_command_stop_with_its_exit_code(
    workspace, write_params, run_cli, tmp_path, capfd
):
    """A teacher too weak to teach must stop the pipeline, however many processes found it so."""
    root = copy_of(workspace, tmp_path / "copy", "reward_model")
    params = write_params(tmp_path / "params.yaml", {"reward_training.min_accuracy": 0.999})
    done = run_cli(
        "--params", params, "--root", root, "reward-training", "--round", 1, "--processes", 2
    )
    assert done.code == 2
    assert "of 2 stopped, and the others were ended: its message stands above" in done.err
    assert "error: the reward model is too weak to teach" in capfd.readouterr().err
    assert not (root / "rounds/r1/reward_model").exists()


def test_torchrun_is_refused_for_steps_of_one_process(workspace, run_cli, monkeypatch):
    """Two searches that write one file at once leave either's, or an error."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("RANK", "1")
    done = run_cli(
        "--params", workspace.params_path, "--root", workspace.root, "search", "--round", 1
    )
    assert done.code == 2
    assert "search runs in one process" in done.err


@pytest.mark.parametrize("n", [1, 2, 7, 9])
def test_shares_are_equal_and_hold_every_item_in_order(n):
    """Collectives of unequal shapes hang; a lost text is trained on by nobody."""
    shares = [Ranks(rank, 3).share(range(n)) for rank in range(3)]
    assert len({len(share) for share in shares}) == 1
    assert all(share == sorted(share) for share in shares)
    dealt = [item for row in zip(*shares, strict=True) for item in row]
    assert dealt[:n] == list(range(n))
    assert ALONE.share(range(n)) == list(range(n))


if __name__ == "__main__":
    main(*sys.argv[1:])
