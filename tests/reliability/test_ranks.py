"""Claims about training in two processes: what comes out is what one process gives.

Run by torchrun this file is the training: `torchrun --nproc-per-node 2 test_ranks.py PARAMS ROOT OUT`.
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
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_pre_hook

from exemplar import launch, steps
from exemplar.config import load_params
from exemplar.data.dataset import read_dataset
from exemplar.errors import TrainingError
from exemplar.layout import Layout
from exemplar.records import LlmScores, Rewards
from exemplar.training.distill import train_retriever
from exemplar.training.ranks import ALONE, Ranks
from exemplar.training.reward import train_reward_model

MODELS = ("reward_model", "retriever")
KILLED_AT = 5


class Killed(Exception):
    """Stands for a kill, between two updates."""


def train(model, profile, layout, out, ranks, **changes):
    """Train the reward model or the retriever of round 1 on the files of a finished run."""
    dataset, number = read_dataset(layout.data), {"seed": profile.seed, "round": 1}
    scores = dataset.read(layout.round(1) / "llm_scores.parquet", LlmScores)
    if model == "reward_model":
        settings = profile.reward_training.model_dump(exclude={"init", "min_accuracy", "clip_norm"})
        init, examples = profile.reward_training.init, dataset.pool_examples(scores)
        settings |= {**number, "ranks": ranks, "log_every": 1, "dropout": 0.0, **changes}
        return train_reward_model(init, examples, scores, out, **settings)
    rewards = dataset.read(layout.round(1) / "rewards.parquet", Rewards)
    settings = profile.kd_training.model_dump(exclude={"init", "clip_norm"})
    settings |= {**number, "ranks": ranks, "log_every": 1, "dropout": 0.0, **changes}
    init, examples = profile.kd_training.init, dataset.pool_examples(rewards)
    settings["classification_tasks"] = dataset.classification_tasks
    return train_retriever(init, examples, [rewards], out, **settings)


def record(model, profile, layout, out, ranks):
    """Train, and return the gradients (clipped) of every update and the weights' names."""
    gradients = []

    def keep(optimizer, *_):
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        gradients.append([None if w.grad is None else w.grad.clone() for w in weights])

    handle = register_optimizer_step_pre_hook(keep)
    train(model, profile, layout, out, ranks)
    handle.remove()
    return gradients


def interrupt_and_go_on(model, profile, layout, out, ranks):
    """Train with dropout in one go, and again with a kill after the checkpoint of update 3."""
    often = {"dropout": 0.1, "num_updates": 8, "save_every": 3}
    train(model, profile, layout, out / "whole", ranks, **often)
    updates = []

    def kill(*_):
        updates.append(1)
        if len(updates) == KILLED_AT:
            raise Killed

    often["checkpoint"] = out / "checkpoint"
    handle = register_optimizer_step_pre_hook(kill)
    try:
        train(model, profile, layout, out / "continued", ranks, **often)
    except Killed:
        (out / "killed").write_text(str(often["checkpoint"].exists()))
    handle.remove()
    train(model, profile, layout, out / "continued", ranks, **often)


def main(params, root, out):
    """What one rank does. Every rank has a folder of its own, as on machines of their own."""
    profile, layout = load_params(Path(params)).active, Layout(Path(root))
    with launch.join() as ranks:
        assert ranks.size == 2
        folder = Path(out) / str(ranks.rank)
        for model in MODELS:
            (folder / model).mkdir(parents=True)
            gradients = record(model, profile, layout, folder / model / "equal", ranks)
            torch.save(gradients, folder / model / "gradients.pt")
        interrupt_and_go_on("retriever", profile, layout, folder / "retriever", ranks)


def run_torchrun(*arguments):
    """Run two processes on this machine's CPUs."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "--monitor-interval", "0.1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [*command, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def both(workspace, write_params, tmp_path_factory):
    """Return folders of two ranks and, in the same layout, of one process."""
    root = tmp_path_factory.mktemp("ranks")
    # Batches of 5 queries: neither texts nor pairs come out even in every update.
    changes = {"reward_training.batch_size": 5, "kd_training.batch_size": 5}
    params = write_params(root / "params.yaml", changes)
    done = run_torchrun(__file__, params, workspace.root, root / "two")
    assert done.returncode == 0, done.stderr
    profile, layout = load_params(params).active, workspace.layout
    for model in MODELS:
        (root / "one" / model).mkdir(parents=True)
        gradients = record(model, profile, layout, root / "one" / model / "equal", ALONE)
        torch.save(gradients, root / "one" / model / "gradients.pt")
    return root


@pytest.mark.parametrize("model", MODELS)
def test_losses_gradients_and_weights_are_those_of_one_process(both, model):
    """A factor of the number of ranks, or a share weighted wrongly, trains another model."""
    one, two = both / "one" / model, both / "two" / "0" / model
    expected, found = (torch.load(folder / "gradients.pt") for folder in (one, two))
    assert len(expected) == len(found) == 4
    worst = 0.0
    for ours, theirs in zip(expected, found, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            if a is None:
                assert b is None
            else:
                worst = max(worst, (a-b).abs().max().item())
    print("gradients", worst)
    rows = [json.loads((folder / "equal/training.json").read_text())["history"] for folder in (one, two)]
    for a, b in zip(*rows, strict=True):
        print({k: (a[k], a[k] - b[k]) for k in a})
    first, second = (load_file(folder / "equal/model.safetensors") for folder in (one, two))
    for name in first:
        print(name, (first[name] - second[name]).abs().max().item())
    assert 0


if __name__ == "__main__":
    main(*sys.argv[1:])
