"""The cross-encoder: two texts read together, one score (paper, section 3.3).

Texts are tokenised once and alone; pairs are put together from token ids, after the model's own
pattern of special tokens. Shapes: P pairs, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from exemplar import models
from exemplar.devices import default_device
from exemplar.errors import ModelError
from exemplar.models import transformers_alone
from exemplar.prepacked import prepack
from exemplar.training.optimisation import (
    autocast,
    length_batches,
    seeded,
    use_fast_attention,
)

Tokens: TypeAlias = list[int]


@dataclass(frozen=True)
class PairPattern:
    """Where special tokens stand in a pair, and the token types of both sides."""

    head: tuple[int, ...]
    middle: tuple[int, ...]
    tail: tuple[int, ...]
    types: tuple[int, int]

    @classmethod
    def of(cls, tokenizer: Any) -> PairPattern:
        """Read the pattern off an encoded pair."""
        encoded = tokenizer("a", "b", return_token_type_ids=True)
        sides, ids = encoded.sequence_ids(0), encoded["input_ids"]
        first, second = sides.index(0), sides.index(1)
        end_first = len(sides) - sides[::-1].index(0)
        end_second = len(sides) - sides[::-1].index(1)
        kinds = encoded["token_type_ids"]
        return cls(
            tuple(ids[:first]),
            tuple(ids[end_first:second]),
            tuple(ids[end_second:]),
            (kinds[first], kinds[second]),
        )

    def join(self, left: Tokens, right: Tokens, max_length: int) -> tuple[Tokens, Tokens]:
        """Return token ids and token types of a pair of at most `max_length` tokens.

        The longer side is cut first, and from its left: the answer ends a text, and it is what
        the reward model must see.
        """
        room = max_length - len(self.head) - len(self.middle) - len(self.tail)
        if len(left) + len(right) > room:
            left_room = max(room - len(right), min(len(left), room // 2))
            left = left[len(left) - left_room :]
            right = right[len(right) - min(len(right), room - len(left)) :]
        ids = [*self.head, *left, *self.middle, *right, *self.tail]
        num_left = len(self.head) + len(left) + len(self.middle)
        # In every pattern known the middle belongs to the left side and the tail to the right.
        return ids, [self.types[0]] * num_left + [self.types[1]] * (len(ids) - num_left)


class CrossEncoder:
    """A transformer with one output, its fast tokenizer and the longest pair it is given.

    `model`: a transformers sequence-classification model, float32; `dtype`: what its forward pass
    computes in, "float32" or "bfloat16".
    """

    def __init__(self, model: Any, tokenizer: Any, *, max_length: int, dtype: str) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.dtype = dtype
        self._pattern = PairPattern.of(tokenizer)

    def for_inference(self) -> CrossEncoder:
        """Lay the weights out for the processor, once and for all; return this cross-encoder.

        On a CPU it then scores faster and can be neither trained nor saved.
        """
        prepack(self.model, getattr(torch, self.dtype))
        return self

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = next(self.model.parameters()).device
        return device

    def tokenize(self, texts: Iterable[str]) -> dict[str, Tokens]:
        """Return the token ids of every different text, without special tokens."""
        unique = list(dict.fromkeys(texts))
        if not unique:
            return {}
        # Cut where no pair can use more; from the left, see PairPattern.join.
        encoded = self.tokenizer(unique, add_special_tokens=False, verbose=False)["input_ids"]
        cut = (ids[-self.max_length :] for ids in encoded)
        return dict(zip(unique, cut, strict=True))

    def join(self, left: Tokens, right: Tokens) -> tuple[Tokens, Tokens]:
        """Return token ids and token types of one pair."""
        return self._pattern.join(left, right, self.max_length)

    def score(self, pairs: Sequence[tuple[Tokens, Tokens]], *, batch_tokens: int) -> Tensor:
        """Return the float32 scores_P of pairs (token ids, token types), with gradients.

        Pairs of like length go through the model together, at most `batch_tokens` with padding.
        """
        order: list[int] = []
        scores = []
        for batch in length_batches([len(ids) for ids, _ in pairs], batch_tokens):
            order += batch
            scores.append(self._forward([pairs[i] for i in batch]))
        back = torch.empty(len(order), dtype=torch.long)
        back[torch.tensor(order)] = torch.arange(len(order))
        return torch.cat(scores)[back.to(self.device)]

    def _forward(self, pairs: Sequence[tuple[Tokens, Tokens]]) -> Tensor:
        longest = max(len(ids) for ids, _ in pairs)
        padding = self.tokenizer.pad_token_id or 0
        gaps = [longest - len(ids) for ids, _ in pairs]
        ids_PT = [ids + [padding] * gap for (ids, _), gap in zip(pairs, gaps, strict=True)]
        types_PT = [types + [0] * gap for (_, types), gap in zip(pairs, gaps, strict=True)]
        mask_PT = [[1] * (longest - gap) + [0] * gap for gap in gaps]
        inputs = {"input_ids": ids_PT, "attention_mask": mask_PT}
        if "token_type_ids" in self.tokenizer.model_input_names:
            inputs["token_type_ids"] = types_PT
        with autocast(self.device, self.dtype):
            output = self.model(
                **{name: torch.tensor(rows).to(self.device) for name, rows in inputs.items()}
            )
        logits: Tensor = output.logits
        return logits[:, 0].float()

    def save(self, folder: Path) -> None:
        """Write model, tokenizer and max_length into an existing folder."""
        self.tokenizer.model_max_length = self.max_length
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def load_cross_encoder(
    ref: str,
    *,
    dtype: str,
    max_length: int | None = None,
    head_seed: int | None = None,
    device: torch.device | None = None,
) -> CrossEncoder:
    """Load a cross-encoder from a folder, a hub id or package:<package>/<folder>.

    `head_seed`: where the model comes without a head of one output (an encoder that training
    starts from), one is drawn from this seed; None refuses such a model. `max_length` None takes
    what the folder records. Raises `ModelError` where there is no model that fits.
    """
    path = models.resolve(ref)
    if Path(path).exists() and not (Path(path) / "config.json").is_file():
        raise ModelError(
            f"{path} is no model: expected a folder with config.json, weights and tokenizer. "
            "Give the folder of a model, or run the step that writes it (`dvc repro`)."
        )
    model, tokenizer, missing = _read(path, head_seed)
    if missing and head_seed is None:
        raise ModelError(
            f"{path} has no trained head ({', '.join(missing)} missing): its scores would be "
            "random. Give the folder of a reward model, or run reward_training."
        )
    positions = getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length
    if model.config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        positions -= 2  # their positions are counted from padding_idx + 1
    most = min(positions, tokenizer.model_max_length) if max_length is None else positions
    if max_length is not None and not 8 <= max_length <= most:
        raise ModelError(
            f"max_length {max_length} does not suit {path}: expected 8 to {most} tokens, as many "
            "as the model has positions. Change max_length or choose another model."
        )
    device = device or default_device()
    use_fast_attention(model, device)
    return CrossEncoder(
        model.to(device).eval(),
        tokenizer,
        max_length=most if max_length is None else max_length,
        dtype=dtype,
    )


def _read(path: str, head_seed: int | None) -> tuple[Any, Any, list[str]]:
    """Return model, tokenizer and the weights that the checkpoint did not hold."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        with transformers_alone(), seeded("reward_model_head", head_seed):
            model, info = AutoModelForSequenceClassification.from_pretrained(
                path,
                num_labels=1,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=head_seed is not None,
            )
            tokenizer = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"{path} holds no cross-encoder that can be loaded ({type(error).__name__}: {error}). "
            "Expected config.json with model_type, model.safetensors and a fast tokenizer. Give "
            "another model, or remake this one."
        ) from error
    return model, tokenizer, sorted(info["missing_keys"])
