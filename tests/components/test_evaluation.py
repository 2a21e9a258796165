"""Claims about evaluation: the LM's own answers, judged as the metrics say, one row an example."""

import hashlib
import json
from statistics import fmean

import pytest

from exemplar import steps
from exemplar.data.io import made_from, read_records, write_records
from exemplar.errors import DataError
from exemplar.records import Candidates, Outcome

METHODS = ["baselines/zero_shot", "baselines/bm25", "rounds/r1", "rounds/r2"]
LABELS = {
    "library_slips": {"Oak", "Tin", "Salt", "Wool"},
    "museum_marks": {"circle", "arrow", "wave", "cross"},
}


@pytest.fixture(params=METHODS)
def folder(workspace, request):
    return workspace.root / request.param


def read(folder):
    outcomes = read_records(folder / "evaluation/outcomes.parquet", Outcome)
    return outcomes, json.loads((folder / "evaluation/metrics.json").read_text())


def plain_score(task: str, prediction: str, answers) -> float:
    """Accuracy, or for board_notes SQuAD's exact match, written out for these texts."""
    if task != "board_notes":
        return 100.0 * (prediction.strip().lower() in [a.strip().lower() for a in answers])

    def squad(text: str) -> str:
        kept = "".join(c for c in text.lower() if c.isalnum() or c.isspace())
        return " ".join(word for word in kept.split() if word not in ("a", "an", "the"))

    return 100.0 * (squad(prediction) in [squad(answer) for answer in answers])


def test_there_is_one_outcome_a_test_query_in_their_order(workspace, folder):
    """The gate pairs outcomes by example; a missing one would drop out of the comparison."""
    outcomes, _ = read(folder)
    expected = [(q.example_id, q.task, q.group) for q in workspace.dataset.test]
    assert [(o.example_id, o.task, o.group) for o in outcomes] == expected


def test_scores_are_the_metrics_of_the_predictions(workspace, folder):
    """A score that does not follow from the prediction cannot be audited."""
    outcomes, _ = read(folder)
    for outcome in outcomes:
        answers = workspace.dataset.test_by_id[outcome.example_id].answers
        if outcome.prediction.isascii():
            assert outcome.score == plain_score(outcome.task, outcome.prediction, answers)


def test_metrics_are_means_of_the_outcomes(folder):
    """The headline figure must be what anyone gets from the frozen rows."""
    outcomes, metrics = read(folder)
    tasks = {}
    for outcome in outcomes:
        tasks.setdefault(outcome.task, []).append(outcome.score)
    means = {task: fmean(scores) for task, scores in tasks.items()}
    assert {t: facts["value"] for t, facts in metrics["tasks"].items()} == pytest.approx(means)
    assert metrics["average"]["value"] == pytest.approx(fmean(means.values()))
    in_house = fmean([means["library_slips"], means["museum_marks"]])
    assert metrics["categories"]["in_house"]["value"] == pytest.approx(in_house)
    for interval in (metrics["average"], *metrics["tasks"].values()):
        assert 0 <= interval["low"] <= interval["value"] <= interval["high"] <= 100
    assert {t for t, facts in metrics["tasks"].items() if facts["held_out"]} == {"museum_marks"}


def test_answers_stay_within_what_the_task_allows(workspace, folder):
    """A classification answered with a free text would count as wrong for its form alone."""
    for outcome in read(folder)[0]:
        if outcome.task in LABELS:
            assert outcome.prediction in LABELS[outcome.task]
        elif outcome.task == "inn_customs":
            choices = workspace.dataset.test_by_id[outcome.example_id].choices
            assert outcome.prediction in choices
        else:
            assert "\n" not in outcome.prediction


def test_demonstrations_are_those_of_search_nearest_first(folder):
    """A prompt in another order, or with others, would judge another retriever."""
    chosen = {
        item.query_id: item.candidate_ids
        for item in read_records(folder / "demonstrations.parquet", Candidates)
    }
    for outcome in read(folder)[0]:
        given = chosen[outcome.example_id]
        assert outcome.demonstration_ids == given[: len(given) - outcome.num_dropped]


def test_label_agreement_is_the_share_of_demonstrations_with_the_querys_label(workspace, folder):
    """It tells what a retriever learnt about labels without asking the LM."""
    dataset, (_, metrics) = workspace.dataset, read(folder)
    hits = {}
    for item in read_records(folder / "demonstrations.parquet", Candidates):
        query = dataset.test_by_id[item.query_id]
        if query.task in LABELS:
            hits.setdefault(query.task, []).extend(
                dataset.pool_by_id[name].answers[0] == query.answers[0]
                for name in item.candidate_ids
            )
    expected = {task: fmean(values) for task, values in hits.items() if values}
    assert metrics["label_agreement"] == pytest.approx(expected)


def test_multiple_choice_takes_the_likeliest_option(workspace, tiny_models, folder):
    """The rule of the paper, computed option by option through plain transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_models.lm, dtype="float32").eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_models.lm)
    dataset = workspace.dataset

    def mean_logprob(prompt, option):
        encoded = tokenizer(prompt + option, return_offsets_mapping=True)
        ids, ends = encoded["input_ids"], [end for _, end in encoded["offset_mapping"]]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0]
        logprobs = torch.log_softmax(logits.double(), dim=-1)
        return fmean(
            float(logprobs[i - 1, ids[i]]) for i, end in enumerate(ends) if end > len(prompt)
        )

    for outcome in read(folder)[0]:
        if outcome.task != "inn_customs":
            continue
        query = dataset.test_by_id[outcome.example_id]
        shown = [dataset.pool_by_id[name] for name in reversed(outcome.demonstration_ids)]
        texts = [f"{e.query}\n{e.answers[0]}" for e in shown]
        prompt = "\n\n".join([*texts, query.query]) + "\n"
        scores = {option: mean_logprob(prompt, option) for option in query.choices}
        assert scores[outcome.prediction] == pytest.approx(max(scores.values()), abs=1e-4)


def test_the_page_of_examples_shows_every_task(folder):
    """People find a broken prompt by reading one."""
    page = (folder / "evaluation/examples.md").read_text()
    for task in ("library_slips", "museum_marks", "inn_customs", "board_notes"):
        assert f"## {task}" in page


def test_the_outcomes_name_the_data_and_demonstrations(workspace, folder):
    """Outcomes of another test set must not be compared."""
    digest = hashlib.sha256((folder / "demonstrations.parquet").read_bytes()).hexdigest()
    expected = {"data": workspace.dataset.fingerprint, "demonstrations": digest}
    assert made_from(folder / "evaluation/outcomes.parquet") == expected


def test_again_the_same_outcomes(workspace, tmp_path):
    """The gate compares frozen outcomes: chance in them would promote or refuse by luck."""
    first = workspace.layout.round(1)
    figures = steps.evaluation(
        workspace.profile,
        data=workspace.layout.data,
        demonstrations=first / "demonstrations.parquet",
        out=tmp_path / "evaluation",
    )
    for name in ("outcomes.parquet", "metrics.json", "examples.md"):
        assert (tmp_path / "evaluation" / name).read_bytes() == (
            first / "evaluation" / name
        ).read_bytes()
    assert figures["average"] == read(first)[1]["average"]["value"]


def test_test_queries_without_demonstrations_are_an_error(workspace, tmp_path):
    """Judged on a part of the test set, a retriever could look better than it is."""
    path = workspace.layout.round(1) / "demonstrations.parquet"
    some = read_records(path, Candidates)[1:]
    write_records(
        tmp_path / "part.parquet",
        Candidates,
        some,
        made_from={"data": workspace.dataset.fingerprint},
    )
    with pytest.raises(DataError, match="has no entry among the demonstrations"):
        steps.evaluation(
            workspace.profile,
            data=workspace.layout.data,
            demonstrations=tmp_path / "part.parquet",
            out=tmp_path / "evaluation",
        )
    assert [path.name for path in tmp_path.iterdir()] == ["part.parquet"]


def test_the_component_writes_the_same_evaluation_alone_and_in_shares(workspace, component):
    """Shards must not change a result, nor may a share that is missing go unnoticed."""
    folder = workspace.layout.round(1)
    inputs = {
        "target": "r1",
        "data": workspace.layout.data,
        "demonstrations": folder / "demonstrations.parquet",
    }
    shares = [component("evaluation", shard=f"{n}/2", **inputs)["outcomes"] for n in (1, 2)]
    assert all((share / "records.parquet").is_file() for share in shares)
    joined = component("evaluation", shares=shares, **inputs)["outcomes"]
    for path in (folder / "evaluation").iterdir():
        assert (joined / path.name).read_bytes() == path.read_bytes(), path.name
    with pytest.raises(DataError, match="both share 1/2"):
        component("evaluation", shares=[shares[0], shares[0]], **inputs)
