"""The report page: self-contained, safe against the texts it shows, whole with little data."""

import csv
import io
import json
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from exemplar.errors import DataError
from exemplar.evaluation.data_card import describe
from exemplar.evaluation.gate import decide
from exemplar.evaluation.report.marks import Scale, curve, duration
from exemplar.evaluation.report.page import ReportData, build_report, rounds_csv
from exemplar.records import Candidates, Example, Outcome

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> & \"'{{ 7 * 7 }}"
METHODS = ("zero_shot", "bm25", "r1", "r2")
RIGHT = {"zero_shot": 2, "bm25": 5, "r1": 7, "r2": 8}
TASKS = ("tickets", "codes")


class Page(HTMLParser):
    """The elements of a page, its visible text and its scripts."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self.scripts, self._stack = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._stack.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self._stack.pop()

    def handle_data(self, data):
        if not self._stack:
            self.text.append(data)
        elif self._stack[-1][0] == "script":
            self.scripts.append((self._stack[-1][1], data))

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())

    @property
    def explorer(self):
        (found,) = [data for attrs, data in self.scripts if attrs.get("id") == "explorer-data"]
        return json.loads(found)


def make_data(methods=METHODS, *, hostile=False, number=10):
    note = HOSTILE if hostile else "plain"
    test = [
        Example(f"{task}/test/{i}", task, f"query {i} {note}", ("yes", "yeah"))
        for task in TASKS
        for i in range(number)
    ]
    pool = [
        Example(f"{task}/pool/{i}", task, f"pool query {i} {note}", (f"pool answer {i}",))
        for task in TASKS
        for i in range(3)
    ]
    outcomes, demonstrations, metrics = {}, {}, {}
    for method in methods:
        rows = []
        for index, example in enumerate(test):
            ids = () if method == "zero_shot" else tuple(f"{example.task}/pool/{i}" for i in (2, 0))
            score = 100.0 if index % number < RIGHT[method] else 0.0
            rows.append(Outcome(example.example_id, example.task, "", note, score, ids, 1))
        outcomes[method] = rows
        demonstrations[method] = [
            Candidates(o.example_id, o.demonstration_ids, (0.75, 0.5)[: len(o.demonstration_ids)])
            for o in rows
        ]
        value = {"value": 10.0 * RIGHT[method], "low": 5.0 * RIGHT[method], "high": 90.0}
        facts = {**value, "metric": "accuracy", "num_examples": number, "held_out": True}
        metrics[method] = {
            "average": value,
            "categories": {"Desk": value},
            "tasks": {task: {**facts, "figures": {"accuracy": value["value"]}} for task in TASKS},
        }
    return ReportData(
        methods=methods,
        metrics=metrics,
        title=f"Report {note}",
        about={"language model": note},
        categories=dict.fromkeys(TASKS, "Desk"),
        outcomes=outcomes,
        demonstrations=demonstrations,
        test=test,
        pool=pool,
        histories={
            "r1": {
                "reward_training": [
                    {"update": 0, "held_out/ranking_accuracy": 0.25},
                    {"update": 10, "loss": 2.0, "lr": 1e-5},
                    {"update": 20, "loss": 1.0, "lr": 1e-5},
                    {"update": 20, "held_out/ranking_accuracy": 0.625},
                ]
            }
        },
        costs=[
            {
                "step": "llm_scoring",
                "target": "r1",
                "seconds": 90.0,
                "sequences": 640,
                "tokens": 9000,
            },
            {"step": "bm25_candidates", "seconds": 0.5},
        ],
        decisions={"r1": decide(outcomes["bm25"], outcomes["r1"], num_resamples=50).to_dict()}
        if {"bm25", "r1"} <= set(methods)
        else {},
        cards=describe(pool, pool[:1], test, {"tickets": ("no", "yes")}),
    )


def test_nothing_on_the_page_comes_from_elsewhere():
    """A report opened without a network, or years later, must look the same and tell nobody."""
    page = build_report(make_data())
    assert "http:" not in page
    assert "https:" not in page
    assert "@import" not in page
    for tag, attributes in Page(page).elements:
        assert tag not in {"link", "iframe", "object", "img"}
        assert "src" not in attributes
        assert attributes.get("href", "#").startswith("#")
    assert "default-src 'none'" in page


def test_every_method_task_and_figure_is_on_the_page():
    """A method left out of the table is a comparison hidden."""
    words = Page(build_report(make_data())).words
    for expected in ("Zero-shot", "BM25", "Round 1", "Round 2", "tickets", "codes", "held out"):
        assert expected in words
    for method in METHODS:
        assert f"{10.0 * RIGHT[method]:.1f}" in words
    assert "Round 2 scores 80.0 on average, 30.0 points more than BM25" in words
    for expected in ("0.625", "1 min 30 s", "640", "100", "Promoted", "Reward model: loss"):
        assert expected in words


def test_hostile_text_stays_text():
    """Queries come from anywhere; one with a script tag must not run in the reader's browser."""
    data = make_data(hostile=True)
    page = build_report(data)
    parsed = Page(page)
    assert "<script>alert" not in page
    assert "<img" not in page
    assert not any(name.startswith("on") for _, attrs in parsed.elements for name in attrs)
    assert sum(tag == "script" for tag, _ in parsed.elements) == 2
    assert "{{ 7 * 7 }}" in parsed.words
    assert parsed.explorer["examples"][0]["query"].endswith(HOSTILE)
    script = next(text for attrs, text in parsed.scripts if "id" not in attrs)
    for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert sink not in script


def test_the_explorer_holds_what_each_method_showed_and_got():
    """A demonstration beside the wrong similarity would explain an answer wrongly."""
    explorer = Page(build_report(make_data())).explorer
    assert explorer["best"] == "bm25"
    assert explorer["chosen"] == "r2"
    assert [method["key"] for method in explorer["methods"]] == list(METHODS)
    example = explorer["examples"][0]
    assert example["answers"] == ["yes", "yeah"]
    shown = [
        (explorer["pool"][number][1], similarity)
        for number, similarity in example["runs"]["r1"]["demonstrations"]
    ]
    assert shown == [("pool answer 2", 0.75), ("pool answer 0", 0.5)]
    assert example["runs"]["zero_shot"]["demonstrations"] == []
    assert example["runs"]["r1"]["dropped"] == 1


def test_a_large_test_set_is_sampled_evenly_and_said_so():
    """A page with 100,000 examples would not open."""
    data = replace(make_data(number=50), explorer_examples=20)
    page = Page(build_report(data))
    tasks = [example["task"] for example in page.explorer["examples"]]
    assert (tasks.count("tickets"), tasks.count("codes")) == (10, 10)
    assert "20 of 100 test examples, drawn at random" in page.words
    assert build_report(data) == build_report(data)


@pytest.mark.parametrize("methods", [("r1",), ("bm25",), ("bm25", "r1"), METHODS[:2]])
def test_it_works_with_little(methods):
    """The first report of a run has one round or none, and it must not fail at the last step."""
    data = make_data(methods)
    page = Page(build_report(replace(data, histories={}, costs=(), decisions={})))
    assert "on average" in page.words
    bare = build_report(ReportData(methods=methods, metrics=data.metrics))
    assert "explorer-data" not in Page(bare).words


def test_missing_or_foreign_figures_are_named():
    """A report with a hole in it looks like a result."""
    data = make_data()
    with pytest.raises(DataError, match="r3"):
        build_report(replace(data, methods=(*METHODS, "r3")))
    with pytest.raises(DataError, match="no method"):
        build_report(replace(data, methods=()))
    foreign = {**data.outcomes, "r1": data.outcomes["r1"][1:]}
    with pytest.raises(DataError, match="r1 has no outcome"):
        build_report(replace(data, outcomes=foreign))
    with pytest.raises(DataError, match="not in the pool"):
        build_report(replace(data, pool=data.pool[:1]))


def test_tables_have_headings_and_controls_have_labels():
    """Without them a screen reader reads a grid of bare numbers."""
    page = build_report(make_data())
    parsed = Page(page)
    assert all(
        attrs.get("scope") in {"col", "row"} for tag, attrs in parsed.elements if tag == "th"
    )
    ids = {attrs["id"] for _, attrs in parsed.elements if "id" in attrs}
    links = {attrs["href"][1:] for tag, attrs in parsed.elements if tag == "a"}
    named = [attrs.get("aria-labelledby") for tag, attrs in parsed.elements if tag == "section"]
    assert links | set(named) <= ids
    assert page.count("<label") == page.count("<select") + page.count("<input")
    assert ("html", {"lang": "en"}) in parsed.elements


def test_rounds_csv_has_one_row_a_method():
    """`dvc plots` and spreadsheets read it by column name."""
    rows = list(csv.DictReader(io.StringIO(rounds_csv(METHODS, make_data().metrics))))
    assert [row["method"] for row in rows] == list(METHODS)
    assert [row["round"] for row in rows] == ["0", "0", "1", "2"]
    assert rows[3] == {
        "method": "r2", "round": "2", "average": "80.0000", "low": "40.0000", "high": "90.0000",
        "Desk": "80.0000",
    }  # fmt: skip
    metrics = make_data().metrics
    broken = {**metrics, "r1": {**metrics["r1"], "categories": {}}}
    with pytest.raises(DataError, match="r1 lacks categories"):
        rounds_csv(METHODS, broken)


@pytest.mark.parametrize(
    "values", [[0.0, 1.0], [41.2, 41.3], [-3.0, 17.5], [5.0], [], [1e-4, 3e-4], [0, 123456]]
)
def test_scales_hold_their_values_between_round_ticks(values):
    """A mark outside its chart, or ticks like 33.333, cannot be read."""
    scale = Scale.around(values)
    assert all(0 <= scale.percent(value) <= 100 for value in values)
    assert 2 <= len(scale.ticks) <= 7
    assert all(len(mark["text"]) <= 7 for mark in scale.marks)


def test_curves_rise_upwards_and_keep_their_values():
    """SVG counts y downwards; forgetting it would draw every loss as a success."""
    view = curve("t", "update", [("a", "last", [(0, 1.0), (10, 3.0)])])
    first, last = view["series"][0]["line"].split()
    assert float(first.split(",")[0]) == 0.0
    assert float(last.split(",")[0]) == 100.0
    assert float(first.split(",")[1]) > float(last.split(",")[1])
    assert view["series"][0]["values"] == {0: 1.0, 10: 3.0}


def test_durations_read_well():
    """Rounding must not print 60 seconds or 60 minutes."""
    texts = [duration(seconds) for seconds in (4.25, 59.99, 125, 3599.9, 7800)]
    assert texts == ["4.2 s", "1 min 00 s", "2 min 05 s", "1 h 00 min", "2 h 10 min"]
