"""Claims about report: one page that stands alone, and figures that agree with the evaluations."""

import csv
import json
import re

import pytest

from exemplar.tracking.store import open_store

METHODS = ["zero_shot", "random", "kmeans", "bm25", "untrained", "r1", "r2"]


@pytest.fixture(scope="module")
def page(workspace):
    return workspace.layout.report.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def averages(workspace):
    folders = [workspace.layout.baseline(name) for name in METHODS[:5]]
    folders += [workspace.layout.round(number) for number in (1, 2)]
    found = {}
    for name, folder in zip(METHODS, folders, strict=True):
        metrics = json.loads((folder / "evaluation/metrics.json").read_text())
        found[name] = metrics["average"]["value"]
    return found


def test_the_page_names_every_method_and_task_and_the_title(workspace, page):
    """A method that is left out looks as if it had never been run."""
    assert workspace.profile.report.title in page
    for name in (*METHODS, *workspace.dataset.tasks):
        assert f'"{name}"' in page
    for heading in ("Zero-shot", "BM25", "Round 1", "Round 2"):
        assert heading in page


def test_the_page_loads_nothing_from_anywhere(page):
    """It is read offline, attached to mails, and years later."""
    assert "://" not in page
    assert not re.search(r"""(src|href)\s*=\s*["']?//""", page)
    for loading in ("@import", "url(", "fetch(", "XMLHttpRequest", "<link", "<iframe"):
        assert loading not in page


def test_the_gates_words_are_on_the_page(workspace, page):
    """A table alone does not say why a round was refused."""
    decision = json.loads((workspace.layout.round(1) / "promotion.json").read_text())
    assert decision["reasons"][0].split(",")[0] in page


def test_costs_come_in_the_order_of_a_run(page):
    """In any other order nobody sees where the time of a round went."""
    table = page.partition('id="cost"')[2].partition("</table>")[0].replace("<wbr>", "")
    rows = re.findall(r'<th scope="row">(\w+)</th><td>([^<]*)</td>', table)
    assert rows[:2] == [("download_data", ""), ("bm25_candidates", "")]
    assert rows[2:4] == [("search", "Zero-shot"), ("evaluation", "Zero-shot")]
    steps = ["llm_scoring", "reward_training", "reward_scoring", "kd_training"]
    expected = [(step, "Round 2") for step in (*steps, "search", "evaluation")]
    assert rows[-6:] == expected


def test_the_figures_by_round_are_those_of_the_evaluations(workspace, averages):
    """`dvc metrics` and `dvc plots` read these files, not the page."""
    with (workspace.layout.metrics / "rounds.csv").open(newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert list(rows) == METHODS
    for name, value in averages.items():
        assert float(rows[name]["average"]) == pytest.approx(value, abs=1e-4)
        low, high = float(rows[name]["low"]), float(rows[name]["high"])
        assert low <= value <= high
        assert rows[name]["round"] == (name[1:] if name in ("r1", "r2") else "0")
    figures = json.loads((workspace.layout.metrics / "rounds.json").read_text())
    assert {name: entry["average"] for name, entry in figures.items()} == averages


def test_the_plot_is_a_picture_that_names_every_method(workspace):
    """An empty picture would pass unnoticed in MLflow until someone needs it."""
    import xml.etree.ElementTree as ET

    text = (workspace.layout.plots / "average.svg").read_text()
    assert ET.fromstring(text).tag.endswith("svg")
    assert text.count("<path") > len(METHODS)


def test_the_page_is_kept_with_every_round_in_mlflow(workspace):
    """Someone who looks at a run must find the report without knowing the machine."""
    store = open_store(workspace.root, "tiny", create=False)
    for number in (1, 2):
        run_id = json.loads((workspace.layout.round(number) / "promotion.json").read_text())[
            "run_id"
        ]
        names = {item.path for item in store.client.list_artifacts(run_id)}
        assert {"report.html", "average.svg", "metrics.json", "examples.md"} <= names


def test_reporting_again_gives_the_same_figures(workspace, run_cli):
    """A report that changes by itself cannot be kept under version control."""
    before = {
        path: path.read_bytes()
        for path in (
            workspace.layout.report,
            workspace.layout.metrics / "rounds.csv",
            workspace.layout.metrics / "rounds.json",
            workspace.layout.plots / "average.svg",
        )
    }
    done = run_cli("--params", workspace.params_path, "--root", workspace.root, "report")
    assert done.code == 0, done.err
    assert {path: path.read_bytes() for path in before} == before


def test_the_component_writes_the_same_page(workspace, component, tmp_path):
    """A page that differs by runner would be read as a result that differs."""
    run = tmp_path / "run"
    (run / "rounds").mkdir(parents=True)
    for name in ("baselines", "costs", "rounds/r1", "rounds/r2"):
        (run / name).symlink_to(workspace.root / name)
    made = component("report", data=workspace.layout.data, run=run)
    assert made["page"].read_bytes() == workspace.layout.report.read_bytes()
    for name in ("metrics/rounds.csv", "metrics/rounds.json", "plots/average.svg"):
        assert (made["tables"] / name).read_bytes() == (workspace.root / name).read_bytes()
