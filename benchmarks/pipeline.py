"""What do the runners cost? And how do compile time and the compiled file grow with the rounds?

One round with one baseline on tiny random models, four ways: bare functions in one process, a
process a step, DVC, and the compiled Kubeflow pipeline under KFP's local runner. The models cost
next to nothing: what is left is starting processes, importing libraries, and the runner itself.

    python benchmarks/pipeline.py                    # all of it
    python benchmarks/pipeline.py --repeats 3        # the shortest of three runs of each
    python benchmarks/pipeline.py --only compile --rounds 1,2,5,10,20

Do a Kubeflow run and a DVC run of the same settings give the same files? Compares, by sha256, what
`exemplar pipeline run` left in a folder with a project in which `exemplar run` was run:

    python benchmarks/pipeline.py --same runs/TIME ../other-checkout
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).resolve().parent.parent
STEPS = 12  # steps of one round with one baseline; the pipeline has three tasks beside them
COMMANDS = [
    ["download-data"],
    ["bm25-candidates"],
    ["search", "--baseline", "bm25"],
    ["evaluation", "--baseline", "bm25"],
    *(
        [command, "--round", "1"]
        for command in (
            "llm-scoring",
            "reward-training",
            "reward-scoring",
            "kd-training",
            "search",
            "evaluation",
            "promotion",
        )
    ),
    ["report"],
]


def save_models(folder: Path) -> None:
    """Save a random Llama that reads bytes, and a random BERT of a few words."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import (
        BertConfig,
        BertModel,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )

    torch.manual_seed(0)
    letters = ["</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    fast = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(letters)}, merges=[]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="</s>").save_pretrained(folder / "lm")
    sizes: dict[str, int] = {"num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"hidden_size": 16, "intermediate_size": 32, "max_position_embeddings": 1024}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(letters), **sizes)).save_pretrained(folder / "lm")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "of", "is", "book", "room"]
    plain = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, "[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    plain.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    marks = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=plain, **marks).save_pretrained(folder / "encoder")
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(folder / "encoder")


def write_params(path: Path, models: Path) -> None:
    """Write the demo's params.yaml with the tiny models, one round and one baseline."""
    document = yaml.safe_load((PROJECT / "params.yaml").read_text(encoding="utf-8"))
    profile = document["profiles"]["demo"]
    profile["lm"] |= {"ref": str(models / "lm"), "dtype": "float32"}
    profile["download_data"] |= {
        "tasks": ["library_slips", "board_notes"],
        "max_pool": 40,
        "max_train": 12,
        "max_test": 6,
    }
    for step in ("reward_training", "kd_training"):
        profile[step] |= {"init": str(models / "encoder"), "num_updates": 4, "dtype": "float32"}
        profile[step] |= {"eval_fraction": 0.3, "eval_every": 2, "warmup": 1, "freeze_layers": 0}
    profile["reward_training"]["min_accuracy"] = 0.001
    profile["evaluation"] |= {"max_new_tokens": 4, "num_resamples": 100}
    profile["promotion"] |= {"num_resamples": 200}
    document |= {
        "profiles": {"demo": profile},
        "rounds": {"r1": document["rounds"]["r1"]},
        "baselines": {"bm25": {"method": "bm25"}},
    }
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")


def bare(root: Path, params: Path) -> float:
    """Call every step in this process, whose libraries are loaded."""
    from exemplar.cli import app

    start = time.perf_counter()
    for command in COMMANDS:
        silence = io.StringIO()
        with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
            app(["--params", str(params), "--root", str(root), *command], standalone_mode=False)
    return time.perf_counter() - start


def processes(root: Path, params: Path) -> float:
    """Start a process for every step."""
    start = time.perf_counter()
    for command in COMMANDS:
        options = ["--params", str(params), "--root", str(root)]
        run([sys.executable, "-m", "exemplar", *options, *command], PROJECT)
    return time.perf_counter() - start


def dvc(root: Path, params: Path) -> float:
    """Let DVC run every stage, in a project of its own."""
    for name in ("src", "mlflow"):
        shutil.copytree(PROJECT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT / "dvc.yaml", root)
    shutil.copy(params, root / "params.yaml")
    run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], root)
    start = time.perf_counter()
    code = "import sys; from exemplar.runner import repro; sys.exit(repro())"
    run([sys.executable, "-c", code], root)
    return time.perf_counter() - start


def kubeflow(root: Path, params: Path) -> float:
    """Let KFP's local runner run the compiled pipeline."""
    from exemplar.kubeflow.local import run_here
    from exemplar.kubeflow.package import read_package

    compile_to(root / "pipeline.yaml", params, rounds=1)
    package = read_package(root / "pipeline.yaml")
    start = time.perf_counter()
    run_here(
        package, package.arguments({}), outputs=root / "runs", root=root, say=lambda line: None
    )
    return time.perf_counter() - start


def compile_to(out: Path, params: Path, **plan: Any) -> int:
    """Compile the pipeline `iteration` and return its size in bytes."""
    from exemplar.config import load_params
    from exemplar.kubeflow import arguments, compiling
    from exemplar.kubeflow.cluster import load_cluster
    from exemplar.kubeflow.placement import Placement
    from exemplar.kubeflow.plan import Plan

    settings = load_params(params)
    placement = Placement(
        load_cluster(PROJECT / "infra/kubernetes/profile.yaml"),
        image="exemplar-python",
        hardware="gpu-small",
    )
    defaults = arguments.of_profile(settings.active, settings.baselines)
    return compiling.compile_pipeline(
        "iteration", Plan(placement, **plan), defaults, out, project=PROJECT
    )


def run(command: list[str], folder: Path) -> None:
    """Run a command without its output, which is shown if it fails."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")


def shortest(way: Callable[[Path, Path], float], params: Path, repeats: int) -> float:
    """Return the seconds of the fastest of some runs, each in a folder of its own."""
    seconds = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory(prefix="exemplar-") as temporary:
            os.environ["HOME"] = temporary
            seconds.append(way(Path(temporary), params))
    return min(seconds)


def compare_runners(params: Path, repeats: int) -> None:
    """Print what each runner takes, a step and more than the bare functions."""
    bare_seconds = 0.0
    print(f"{'runner':<28}{'seconds':>9}{'a step':>9}{'added a step':>14}{'ratio':>7}")
    for name, way in (
        ("bare functions", bare),
        ("a process a step", processes),
        ("dvc repro", dvc),
        ("KFP's local runner", kubeflow),
    ):
        if way is bare:
            shortest(way, params, 1)  # imports
        seconds = shortest(way, params, repeats)
        bare_seconds = bare_seconds or seconds
        added = (seconds - bare_seconds) / STEPS
        print(
            f"{name:<28}{seconds:>9.1f}{seconds / STEPS:>9.2f}{added:>14.2f}"
            f"{seconds / bare_seconds:>7.1f}",
            flush=True,
        )


def compare_rounds(params: Path, rounds: list[int], repeats: int) -> None:
    """Print compile time and size by rounds, with one and with eight shards."""
    print(f"\n{'rounds':>6}{'shards':>8}{'seconds':>9}{'KiB':>8}{'KiB a round':>13}")
    with tempfile.TemporaryDirectory(prefix="exemplar-") as temporary:
        out = Path(temporary) / "pipeline.yaml"
        compile_to(out, params, rounds=1)  # imports
        for shards in (1, 8):
            for number in rounds:
                seconds, size = [], 0
                for _ in range(repeats):
                    start = time.perf_counter()
                    size = compile_to(out, params, rounds=number, shards=shards)
                    seconds.append(time.perf_counter() - start)
                print(
                    f"{number:>6}{shards:>8}{min(seconds):>9.2f}{size / 1024:>8.0f}"
                    f"{size / 1024 / number:>13.0f}",
                    flush=True,
                )


def compare_files(run_folder: Path, workspace: Path) -> None:
    """Print which outputs of a pipeline without shards are those of the workspace."""
    from exemplar.data.io import fingerprint

    (tasks,) = run_folder.glob("exemplar-iteration-*")
    last = max(tasks.glob("promotion*"), key=lambda path: len(path.name)) / "run"
    pairs = [
        (tasks / "download-data/data", "data"),
        (tasks / "bm25-candidates/candidates", "rounds/r1/candidates.parquet"),
        *((path, f"baselines/{path.name}") for path in sorted((last / "baselines").iterdir())),
    ]
    for number in range(1, len(list((last / "rounds").iterdir())) + 1):
        here, following = f"rounds/r{number}", f"rounds/r{number + 1}"
        for task, output, place in (
            ("llm-scoring", "llm_scores", f"{here}/llm_scores.parquet"),
            ("reward-training", "reward_model", f"{here}/reward_model"),
            ("reward-scoring", "rewards", f"{here}/rewards.parquet"),
            ("kd-training", "retriever", f"{here}/retriever"),
            ("search", "demonstrations", f"{here}/demonstrations.parquet"),
            ("search", "index", f"{here}/index"),
            ("search", "next_candidates", f"{following}/candidates.parquet"),
            ("evaluation", "outcomes", f"{here}/evaluation"),
        ):
            # The first `search` and `evaluation` are those of the baselines' loop.
            place_in_line = number + (task in ("search", "evaluation"))
            name = task if place_in_line == 1 else f"{task}-{place_in_line}"
            pairs.append((tasks / name / output, place))
    same = 0
    for path, place in pairs:
        found, expected = fingerprint(path), fingerprint(workspace / place)
        same += found == expected
        print(f"{'same' if found == expected else 'DIFFERENT':<10}{found[:12]}  {place}")
    print(f"{same} of {len(pairs)} are the same")


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=1, help="runs of each; the shortest counts")
    parser.add_argument("--rounds", default="1,2,5,10,20", help="rounds to compile")
    parser.add_argument("--only", choices=("runners", "compile"), help="one half of it")
    parser.add_argument("--same", nargs=2, type=Path, help="compare a run's files", metavar="DIR")
    options = parser.parse_args()
    if options.same:
        compare_files(*options.same)
        return
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.chdir(PROJECT)
    with tempfile.TemporaryDirectory(prefix="exemplar-") as temporary:
        folder = Path(temporary)
        save_models(folder)
        write_params(folder / "params.yaml", folder)
        if options.only != "compile":
            compare_runners(folder / "params.yaml", options.repeats)
        if options.only != "runners":
            rounds = [int(number) for number in options.rounds.split(",")]
            compare_rounds(folder / "params.yaml", rounds, options.repeats)


if __name__ == "__main__":
    main()
