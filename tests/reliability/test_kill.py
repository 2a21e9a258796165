"""Claims about a kill in mid-work: nothing half-made is left, and the next call goes on."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from exemplar.data.io import read_records
from exemplar.records import LlmScores

UPDATES = 120


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


def num_pairs(scores):
    """Count what was scored."""
    return sum(len(item.candidate_ids) for item in scores)


def test_scoring_killed_at_random_moments_scores_each_part_once(workspace, write_params, tmp_path):
    """The LM's scores are the dearest thing of a round: a kill may cost the part under way."""
    root = tmp_path / "copy"
    shutil.copytree(workspace.root, root, ignore=shutil.ignore_patterns("mlartifacts"))
    params = write_params(tmp_path / "params.yaml", {"llm_scoring.part_size": 6})
    arguments = ("--params", params, "--root", root, "llm-scoring", "--round", 1)
    out, parts = root / "rounds/r1/llm_scores.parquet", root / "rounds/r1/.llm_scores.parquet.parts"
    expected = read_records(out, LlmScores)
    out.unlink()

    moments, written = random.Random(5), {}
    for _ in range(3):
        killed = call(*arguments)
        known = len(written)
        while killed.poll() is None and len(list(parts.glob("part-*"))) <= known:
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.05))
        killed.kill()
        killed.communicate()
        assert killed.returncode == -signal.SIGKILL, "it was done before it could be killed"
        assert not out.exists()
        whole = {path: path.stat().st_mtime_ns for path in parts.glob("part-*")}
        assert len(whole) > known, "each life must get further than the one before"
        assert {path: whole[path] for path in written} == written, "a part was scored again"
        written = whole

    kept = sum(num_pairs(read_records(path, LlmScores)) for path in written)
    continued = call(*arguments)
    printed, messages = continued.communicate(timeout=120)
    assert continued.returncode == 0, messages
    assert f"sequences {num_pairs(expected) - kept}," in printed
    assert not parts.exists()
    found = read_records(out, LlmScores)
    assert [(s.candidate_ids, s.reasons) for s in found] == [
        (s.candidate_ids, s.reasons) for s in expected
    ]
    for one, other in zip(found, expected, strict=True):
        assert one.llm_logprobs == pytest.approx(other.llm_logprobs, abs=1e-5)
