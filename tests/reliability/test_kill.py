"""Claims about a kill in mid-work: nothing half-made is left, and the next call goes on."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

UPDATES = 400


def call(*arguments):
    """Start the command as a process of its own: only such a one can be killed."""
    return subprocess.Popen(
        [sys.executable, "-m", "exemplar", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def contents(folder):
    """Return the bytes of every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder): path.read_bytes() for path in files}


def wait_for(path, process):
    """Wait until a file is there, while the process lives."""
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, f"{path} did not come within two minutes"
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("step", "command", "model"),
    [
        ("reward_training", "reward-training", "reward_model"),
        ("kd_training", "kd-training", "retriever"),
    ],
)
def test_a_killed_training_goes_on_to_the_very_same_weights(
    workspace, write_params, run_cli, tmp_path, step, command, model
):
    """Hours on a card would be lost, or a half-written model would be taken for a whole one."""
    root = tmp_path / "copy"
    shutil.copytree(workspace.root, root, ignore=shutil.ignore_patterns("mlartifacts"))
    changes = {f"{step}.num_updates": UPDATES, f"{step}.eval_every": 100, f"{step}.save_every": 5}
    params = write_params(tmp_path / "params.yaml", changes)
    arguments = ("--params", params, "--root", root, command, "--round", 1)
    out, checkpoint = root / "rounds/r1" / model, root / f"rounds/r1/.{model}.checkpoint"

    shutil.rmtree(out)
    assert run_cli(*arguments).code == 0
    expected = contents(out)

    shutil.rmtree(out)
    killed = call(*arguments)
    wait_for(checkpoint, killed)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert checkpoint.exists()
    assert not out.exists()

    continued = call("--verbose", *arguments)
    _, messages = continued.communicate(timeout=120)
    assert continued.returncode == 0, messages
    assert "continuing after update" in messages
    assert contents(out) == expected
    assert not checkpoint.exists()
