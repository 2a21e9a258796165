"""A whole run of two rounds on tiny random models, made once for all tests that look at one.

Nothing here reaches a network, and nothing depends on the weights: the models are random, so the
tests ask what the steps write and whether it is right, never whether a method works well.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from exemplar.config import Params, Profile, load_params
from exemplar.data.dataset import Dataset, read_dataset
from exemplar.layout import Layout

PROJECT = Path(__file__).parents[1]
TASKS = ["library_slips", "museum_marks", "inn_customs", "board_notes"]  # three kinds, one held out
ROUNDS = 2

TINY: dict[str, Any] = {
    "seed": 3,
    "lm": {"ref": "", "dtype": "float32", "max_length": 256, "batch_tokens": 512},
    "download_data": {
        "source": "sample",
        "path": None,
        "tasks": TASKS,
        "max_pool": 24,
        "max_train": 10,
        "max_test": 5,
    },
    "bm25_candidates": {"num_candidates": 10, "scope": "task", "k1": 1.5, "b": 0.75},
    "llm_scoring": {"num_candidates": 6, "part_size": 50},
    "reward_training": {
        "init": "",
        "learning_rate": 1.0e-3,
        "batch_size": 6,
        "num_updates": 4,
        "warmup": 1,
        "num_top": 2,
        "num_bottom": 3,
        "num_negatives": 2,
        "max_length": 96,
        "eval_fraction": 0.3,
        "eval_every": 2,
        "dtype": "float32",
        "min_accuracy": 0.001,
    },
    "reward_scoring": {"batch_tokens": 2048},
    "kd_training": {
        "init": "",
        "learning_rate": 1.0e-3,
        "batch_size": 6,
        "num_updates": 4,
        "warmup": 1,
        "num_top": 2,
        "num_bottom": 6,
        "num_negatives": 2,
        "max_length": 64,
        "eval_fraction": 0.3,
        "eval_every": 2,
        "dtype": "float32",
    },
    "search": {"num_shots": 3, "num_candidates": 10, "scope": "task", "max_length": 64},
    "evaluation": {"max_new_tokens": 6, "num_resamples": 50},
    "promotion": {
        "experiment": "tiny",
        "registered_model": "tiny-retriever",
        "baseline": "bm25",
        "margin": 5.0,
        "num_resamples": 200,
        "entry_script": str(PROJECT / "mlflow" / "served_model.py"),
    },
    "report": {"title": "A tiny run"},
}

BASELINES: dict[str, dict[str, str]] = {
    "zero_shot": {"method": "zero_shot"},
    "random": {"method": "random"},
    "kmeans": {"method": "kmeans"},
    "bm25": {"method": "bm25"},
    "untrained": {"method": "dense"},
}


@dataclass(frozen=True)
class Workspace:
    """A finished run. Tests read it and write elsewhere."""

    root: Path
    params_path: Path

    @property
    def params(self) -> Params:
        return load_params(self.params_path)

    @property
    def profile(self) -> Profile:
        return self.params.active

    @property
    def layout(self) -> Layout:
        return Layout(self.root)

    @property
    def dataset(self) -> Dataset:
        return read_dataset(self.layout.data)


@pytest.fixture(scope="session", autouse=True)
def _own_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the user's MLflow server, and the network, out of every test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.setenv("TOKENIZERS_PARALLELISM", "false")
        yield


@pytest.fixture(scope="session")
def project() -> Path:
    """The root of the checkout."""
    return PROJECT


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Folders of a random Llama (`lm`) and a random BERT (`encoder`) with the sample's words."""
    from exemplar.tasks import sample

    texts = [example.text for example in sample.generate(TINY["seed"])["pool"]]
    root = tmp_path_factory.mktemp("models")
    return SimpleNamespace(
        lm=_save_language_model(root / "lm", texts), encoder=_save_encoder(root / "encoder", texts)
    )


@pytest.fixture(scope="session")
def save_bert() -> Callable[..., Path]:
    """Return a function that saves a random BERT over given words."""
    return _save_bert


@pytest.fixture(scope="session")
def release() -> SimpleNamespace:
    """Writer (`write`) and reader (`content`) of files as the paper's authors released them."""
    path = Path(__file__).with_name("release_files.py")
    spec = importlib.util.spec_from_file_location("release_files", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return SimpleNamespace(write=module.write_release_files, content=module.content)


@pytest.fixture(scope="session")
def write_params(tiny_models: SimpleNamespace) -> Callable[..., Path]:
    """Return a function that writes a params.yaml of profile `tiny`.

    `changes` maps keys inside the profile ("kd_training.num_updates") to other values.
    """

    def write(
        path: Path, changes: Mapping[str, object] | None = None, *, rounds: int = ROUNDS
    ) -> Path:
        profile = yaml.safe_load(yaml.safe_dump(TINY))
        profile["lm"]["ref"] = str(tiny_models.lm)
        for step in ("reward_training", "kd_training"):
            profile[step]["init"] = str(tiny_models.encoder)
        for key, value in (changes or {}).items():
            *parents, last = key.split(".")
            section = profile
            for name in parents:
                section = section[name]
            section[last] = value
        after = ["data/manifest.json", *(f"rounds/r{n}/promotion.json" for n in range(1, rounds))]
        params = {
            "profile": "tiny",
            "rounds": {
                f"r{n}": {"number": n, "next": f"r{n + 1}", "after": after[n - 1]}
                for n in range(1, rounds + 1)
            },
            "baselines": BASELINES,
            "profiles": {"tiny": profile},
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def run_cli() -> Callable[..., SimpleNamespace]:
    """Return a function that runs `exemplar` in this process, as the command line would.

    It gives exit code, standard output and standard error. An error that is not the user's comes
    out as the exception it is.
    """

    def run(*arguments: object) -> SimpleNamespace:
        from exemplar.cli import main

        out, err = io.StringIO(), io.StringIO()
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as caught,
        ):
            main([str(argument) for argument in arguments])
        code = caught.value.code
        return SimpleNamespace(code=code or 0, out=out.getvalue(), err=err.getvalue())

    return run


@pytest.fixture(scope="session")
def workspace(
    tmp_path_factory: pytest.TempPathFactory,
    write_params: Callable[..., Path],
    run_cli: Callable[..., SimpleNamespace],
) -> Workspace:
    """All ten steps over two rounds and five baselines, through the commands that DVC calls."""
    root = tmp_path_factory.mktemp("workspace")
    params = write_params(root / "params.yaml")

    def step(*arguments: object) -> None:
        done = run_cli("--params", params, "--root", root, *arguments)
        assert done.code == 0, f"{arguments}: {done.err}"

    step("download-data")
    step("bm25-candidates")
    for name in BASELINES:
        step("search", "--baseline", name)
        step("evaluation", "--baseline", name)
    for number in range(1, ROUNDS + 1):
        for command in (
            "llm-scoring",
            "reward-training",
            "reward-scoring",
            "kd-training",
            "search",
            "evaluation",
            "promotion",
        ):
            step(command, "--round", number)
    step("report")
    return Workspace(root, params)


def _save_language_model(folder: Path, texts: list[str]) -> Path:
    """Save a Llama of two layers whose predictions differ clearly from token to token."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    fast = Tokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    fast.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=800,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    fast.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=fast, bos_token="<s>", eos_token="</s>")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config)
    _randomise(model, torch.Generator().manual_seed(7), 0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _save_encoder(folder: Path, texts: list[str]) -> Path:
    """Save a BERT of two layers over the commonest words; rare ones are unknown to it."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import BertModel

    splitter, counts = pre_tokenizers.Whitespace(), Counter[str]()
    for text in texts:
        counts.update(word for word, _ in splitter.pre_tokenize_str(text.lower()))
    words = [word for word, _ in counts.most_common(900)]
    _save_bert(folder, words, width=24, positions=96)
    model = BertModel.from_pretrained(folder)
    _randomise(model, torch.Generator().manual_seed(11), 0.1)
    model.save_pretrained(folder)
    return folder


def _save_bert(
    folder: Path,
    words: Sequence[str],
    *,
    width: int = 16,
    layers: int = 2,
    positions: int = 32,
    pooler: bool = True,
) -> Path:
    """Save a random BERT over whole words, as transformers writes it."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *dict.fromkeys(words)]
    fast = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, "[UNK]"))
    fast.normalizer = normalizers.Lowercase()
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    fast.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=fast,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=positions,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=positions,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config, add_pooling_layer=pooler).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _randomise(model: Any, generator: Any, deviation: float) -> None:
    """Draw every matrix from `generator`: the same weights whatever ran before."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, deviation, generator=generator)
