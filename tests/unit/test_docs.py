"""Claims about the documents: what they say of the settings is what params.yaml says."""

import pytest

from exemplar.config import load_params

ROWS = {
    "candidates, of which scored": lambda p: (
        p.bm25_candidates.num_candidates,
        p.llm_scoring.num_candidates,
    ),
    "training queries a task, at most": lambda p: (p.download_data.max_train,),
    "test queries a task, at most": lambda p: (p.download_data.max_test,),
    "reward: queries a batch, updates": lambda p: (
        p.reward_training.batch_size,
        p.reward_training.num_updates,
    ),
    "reward: top, bottom, negatives, tokens": lambda p: group(p.reward_training),
    "distillation: queries a batch, updates": lambda p: (
        p.kd_training.batch_size,
        p.kd_training.num_updates,
    ),
    "distillation: top, bottom, negatives, tokens": lambda p: group(p.kd_training),
    "rate of reward model, of retriever": lambda p: (
        p.reward_training.learning_rate,
        p.kd_training.learning_rate,
    ),
    "frozen layers, dropout of reward model": lambda p: frozen(p.reward_training),
    "frozen layers, dropout of retriever": lambda p: frozen(p.kd_training),
    "demonstrations a prompt": lambda p: (p.search.num_shots,),
    "new tokens": lambda p: (p.evaluation.max_new_tokens,),
}


def group(step):
    return step.num_top, step.num_bottom, step.num_negatives, step.max_length


def frozen(step):
    return step.freeze_layers, step.dropout


def shown(value):
    if isinstance(value, float):
        return f"{value:.0e}".replace("e-0", "e-") if 0 < value < 0.01 else f"{value:g}"
    return f"{value:,}"


@pytest.mark.parametrize("row", ROWS)
def test_the_table_of_defaults_says_what_params_yaml_says(project, row):
    """A reader who trusts an old table compares runs that differ."""
    profiles = load_params(project / "params.yaml").profiles
    cells = [", ".join(map(shown, ROWS[row](profiles[name]))) for name in ("paper", "cpu", "demo")]
    line = f"| {row} | {' | '.join(cells)} |"
    assert line in (project / "docs/method.md").read_text().splitlines(), f"expected: {line}"
