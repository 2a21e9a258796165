"""Claims about the command line: what it prints, where it writes, and how it refuses."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from exemplar import __version__
from exemplar.cli.steps import _short
from exemplar.data.io import read_records
from exemplar.records import Outcome


@pytest.fixture
def here(workspace, run_cli):
    """Return a function that runs a command on the finished workspace."""

    def run(*arguments):
        return run_cli("--params", workspace.params_path, "--root", workspace.root, *arguments)

    return run


def test_without_a_command_there_is_help(run_cli):
    """The first thing that anyone types should show the way."""
    shown = run_cli()
    assert "Commands:" in shown.out + shown.err
    assert "kd-training" in shown.out + shown.err


def test_the_module_is_the_command_too():
    """Where scripts are not on the path, `python -m exemplar` must do the same."""
    done = subprocess.run(
        [sys.executable, "-m", "exemplar", "--help"], capture_output=True, text=True, check=True
    )
    assert "download-data" in done.stdout
    assert __version__


def test_a_steps_cost_is_written_beside_its_output(workspace):
    """The report's table of costs, and any estimate of a larger run, rest on these files."""
    steps = ["download_data", "bm25_candidates"]
    steps += [
        f"{target}/{step}"
        for target in ("r1", "r2")
        for step in (
            "llm_scoring",
            "reward_training",
            "reward_scoring",
            "kd_training",
            "search",
            "evaluation",
        )
    ]
    steps += [
        f"{name}/{step}" for name in workspace.params.baselines for step in ("search", "evaluation")
    ]
    folder = workspace.root / "costs"
    found = {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.json")}
    assert found == set(steps)
    for name in steps:
        cost = json.loads((folder / f"{name}.json").read_text())
        target, _, step = name.rpartition("/")
        assert (cost["step"], cost["target"]) == (step, target)
        assert cost["seconds"] >= 0


def test_the_summary_shows_every_method_and_both_verdicts(workspace, here):
    """After a run of hours the terminal must say how it ended and where to look."""
    shown = here("summary")
    assert shown.code == 0
    for name in (*workspace.params.baselines, "r1", "r2", *workspace.dataset.tasks):
        assert name in shown.out
    for number in (1, 2):
        path = workspace.layout.round(number) / "promotion.json"
        decision = json.loads(path.read_text())
        assert f"r{number} {decision['headline'].split(',')[0]}" in shown.out
    assert "mlflow ui" in shown.out
    metrics = json.loads((workspace.layout.round(1) / "evaluation/metrics.json").read_text())
    assert f"{metrics['average']['value']:.1f}" in shown.out


def test_the_registry_lists_every_version(here):
    """One look must tell which version answers and how each came in."""
    shown = here("registry")
    assert shown.code == 0
    for word in ("version", "aliases", "round", "gate", "challenger"):
        assert word in shown.out


def test_select_searches_a_registered_version(workspace, here):
    """Trying the retriever on one's own text is the first use of it."""
    decision = json.loads((workspace.layout.round(1) / "promotion.json").read_text())
    model = f"models:/tiny-retriever/{decision['version']}"
    chosen = here("select", "The book of knots", "-k", 3, "--model", model)
    assert chosen.code == 0, chosen.err
    lines = chosen.out.splitlines()
    assert len(lines) == 3
    similarities = [float(line.split()[0]) for line in lines]
    assert similarities == sorted(similarities, reverse=True)
    task = ("--task", "board_notes")
    prompt = here("select", "The book of knots", "-k", 2, "--prompt", *task, "--model", model)
    assert prompt.out.endswith("\n\nThe book of knots\n")
    assert prompt.out.count("\n\n") == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("search",), "Give either --round N or --baseline NAME"),
        (("search", "--round", 1, "--baseline", "bm25"), "Give either --round N or --baseline"),
        (("search", "--baseline", "bm26"), "'bm26' is not in params.yaml; known: zero_shot"),
        (("evaluation", "--baseline", "bm26"), "'bm26' is not in params.yaml"),
        (("select", "text", "--model", "models:/nobody@champion"), "no model 'nobody'"),
        (("select", "text", "--model", "models:/tiny-retriever@best"), "has no alias 'best'"),
        (("select", "text", "--model", "models:/tiny-retriever/9"), "has no version '9'"),
        (("select", "text", "--model", "models:/tiny-retriever"), "is no model reference"),
        (("select", "text", "--model", "nowhere"), "neither a bundle"),
        (("select", " ", "--model", "models:/tiny-retriever/1"), "expected a text"),
        (("select", "text", "--task", "chess", "--model", "models:/tiny-retriever/1"), "chess"),
        (("select", "text", "-k", 999, "--model", "models:/tiny-retriever/1"), "k is 999"),
        (("rollback",), "nothing to roll back to"),
        (("run",), "Leave --params and --root away"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_message(here, arguments, words):
    """A traceback tells users that the tool is broken, not what they can do."""
    refused = here(*arguments)
    assert refused.code == 2
    assert refused.err.startswith("error: ")
    assert words in refused.err
    assert "Traceback" not in refused.err
    assert refused.out == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ("llm-scoring",),
        ("llm-scoring", "--round", 0),
        ("llm-scoring", "--round", "one"),
        ("no-such-step",),
        ("summary", "--wrong"),
        ("select", "text", "-k", 0),
    ],
)
def test_wrong_usage_ends_with_two_as_well(here, arguments):
    """Scripts tell a user's error from a crash by the exit code."""
    refused = here(*arguments)
    assert refused.code == 2
    assert "Traceback" not in refused.err


@pytest.mark.parametrize(
    ("value", "text"), [(12345, "12,345"), (0.123456, "0.1235"), ("float32", "float32")]
)
def test_figures_are_printed_for_people(value, text):
    assert _short(value) == text


def test_a_step_prints_one_line(workspace, run_cli, tmp_path):
    """Thirty steps a run: what each prints must fit on a line that one reads."""
    done = run_cli("--params", workspace.params_path, "--root", tmp_path, "download-data")
    assert done.code == 0
    pattern = r"download_data: tasks 4, pool 96, train 30, test 20, seconds [\d.]+\n"
    assert re.fullmatch(pattern, done.out)


def test_the_tasks_are_listed_and_shown(run_cli, tmp_path):
    """Whoever brings data of their own must see what the LM will read before training on it."""
    listed = run_cli("tasks").out
    assert "sst2" in listed
    assert "nyu-mll/glue" in listed
    assert "support_desk" in listed
    shown = run_cli("tasks", "show", "support_desk", "-n", "1").out
    assert "support_desk-pool-000" in shown
    assert "one of Harbor, Lantern, Orchard, Quarry" in shown
    folder = tmp_path / "copa"
    folder.mkdir()
    row = {"premise": "It rained.", "question": "effect", "choice1": "Dry.", "choice2": "Wet."}
    for split in ("train", "test"):
        text = json.dumps({**row, "premise": f"{split}: it rained.", "label": 1})
        (folder / f"{split}.jsonl").write_text(text + "\n")
    shown = run_cli("tasks", "show", "copa", "--path", tmp_path, "--wording", "2").out
    assert "Event: train: it rained.\nName its effect.\n  - Dry.\n  * Wet." in shown


def test_an_unknown_task_or_wording_is_one_message(run_cli):
    """A typing error is no reason for a traceback."""
    failed = run_cli("tasks", "show", "sst")
    assert failed.code == 2
    assert "Did you mean sst2" in failed.err
    failed = run_cli("tasks", "show", "support_desk", "--wording", "3")
    assert failed.code == 2
    assert "has no wording 3" in failed.err


def test_two_methods_are_compared_by_the_gates_statistics(here, workspace):
    """Eyes see differences everywhere; whether one is chance takes the paired examples."""
    shown = " ".join(here("compare", "bm25", "r1").out.split())
    assert "From bm25 to r1. The mean over" in shown
    assert "95 % interval" in shown
    folders = [workspace.layout.baseline("bm25"), workspace.layout.round(1) / "evaluation"]
    again = " ".join(here("compare", *folders).out.split())
    assert shown.split("The mean", 1)[1][:80] == again.split("The mean", 1)[1][:80]
    same = here("compare", "r1", "r1").out
    assert "+0.00 points" in same


def test_a_comparison_without_outcomes_is_refused(here, tmp_path):
    """A typing error in a name must not end in a traceback."""
    failed = here("compare", "bm25", tmp_path)
    assert failed.code == 2
    assert "expected one of zero_shot, random, kmeans, bm25, untrained, r1" in failed.err


def test_a_retriever_is_evaluated_on_ones_own_data(here, workspace, tmp_path):
    """Before a model is trusted somewhere, it is tried there: no rounds, no registry."""
    rows = [
        {"sentence": f"film {i} was {'fine' if i % 2 else 'dull'}", "label": i % 2}
        for i in range(12)
    ]
    for split, part in (("train", rows[:8]), ("test", rows[8:])):
        path = tmp_path / "mine" / "sst2" / f"{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in part))
    options = ("--path", tmp_path / "mine", "--shots", "1")
    for name in ("bm25", workspace.layout.round(1) / "retriever"):
        out = tmp_path / "results" / Path(name).name
        done = here("evaluate", "--retriever", name, *options, "--out", out)
        assert done.code == 0, done.err
        assert "sst2" in done.out
        metrics = json.loads((out / "evaluation/metrics.json").read_text())
        assert metrics["tasks"]["sst2"]["num_examples"] == 4
    compared = here("compare", tmp_path / "results/bm25", tmp_path / "results/retriever")
    assert "From bm25 to retriever. The mean over 1 task" in " ".join(compared.out.split())
    refused = here("compare", "bm25", tmp_path / "results/bm25")
    assert refused.code == 2
    assert "evaluated on different data" in " ".join(refused.err.split())


def test_another_lm_than_the_one_that_scored_answers(here, workspace, tiny_models, tmp_path):
    """Whoever scores with a small LM answers with a large one, and must see what carries over."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    other = tmp_path / "other"
    model = AutoModelForCausalLM.from_pretrained(tiny_models.lm)
    model.lm_head.weight.data.neg_()  # it likes least what the first likes best
    model.save_pretrained(other)
    AutoTokenizer.from_pretrained(tiny_models.lm).save_pretrained(other)
    retriever = workspace.layout.round(1) / "retriever"
    found = {}
    for lm in (tiny_models.lm, other):
        out = tmp_path / "results" / lm.name
        options = ("--lm", lm, "--dtype", "float32", "--tasks", "library_slips", "--out", out)
        done = here("evaluate", "--retriever", retriever, *options)
        assert done.code == 0, done.err
        metrics = json.loads((out / "evaluation/metrics.json").read_text())
        assert metrics["lm"] == {"ref": str(lm), "dtype": "float32"}
        found[lm.name] = read_records(out / "evaluation/outcomes.parquet", Outcome)
    shown = [[o.demonstration_ids for o in outcomes] for outcomes in found.values()]
    assert shown[0] == shown[1]
    answers = [[o.prediction for o in outcomes] for outcomes in found.values()]
    assert answers[0] != answers[1]
    refused = here("evaluate", "--retriever", "bm25", "--dtype", "int3", "--out", tmp_path / "x")
    assert refused.code == 2
    assert "lm.dtype" in refused.err


def test_options_that_do_not_fit_are_one_message(here, tmp_path):
    """The words of the validation library name classes, not options."""
    failed = here(
        "evaluate", "--retriever", "bm25", "--query-prefix", "q: ", "--out", tmp_path / "x"
    )
    assert (failed.code, "takes no prefix" in failed.err) == (2, True)
    failed = here("evaluate", "--retriever", "bm25", "--source", "cloud", "--out", tmp_path / "x")
    assert failed.code == 2
    assert "download_data.source" in failed.err
    assert not (tmp_path / "x").exists()
