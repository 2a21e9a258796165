"""Claims about report.html in a real browser: it works, and everyone can read it."""

import itertools
import json

import pytest

from exemplar.data.io import read_records
from exemplar.prompts import assemble
from exemplar.records import Example, Outcome

SHOWN = "[...document.querySelectorAll('#list .text')].map((node) => node.textContent)"
CURRENT = "document.querySelector('#list [aria-current=true] .text').textContent"
NARROW = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
FITS = """(() => {
  const around = document.querySelector(".costs").parentElement;
  return around.scrollWidth <= around.clientWidth;
})()"""
# Text whose contrast with what lies behind it is below 4.5 (WCAG 2.2, 1.4.3), with the contrast.
PALE = """(() => {
  const parts = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (rgb) => rgb.slice(0, 3).map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const rgb = parts(getComputedStyle(at).backgroundColor);
      if (rgb.length < 4 || rgb[3] === 1) return rgb;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((c) => c.nodeType === 3 && c.textContent.trim());
    if (!own || !node.getClientRects().length) continue;
    const [a, b] = [light(parts(getComputedStyle(node).color)), light(behind(node))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) found.push(`${node.tagName}.${node.className} ${contrast.toFixed(2)}`);
  }
  return [...new Set(found)];
})()"""


@pytest.fixture
def page(browser, workspace):
    browser.look(width=1280)
    browser.open(workspace.layout.report.resolve().as_uri())
    browser.wait("document.readyState === 'complete'")
    return browser


@pytest.fixture
def explorer(page):
    return json.loads(page.run("document.getElementById('explorer-data').textContent"))


def choose(page, **values):
    for name, value in values.items():
        page.run(f"document.forms.filters.elements.{name}.value = {json.dumps(value)}")
    page.run("document.getElementById('filters').dispatchEvent(new Event('input'))")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_it_is_readable_on_every_screen_and_reports_no_error(page, tmp_path, width, dark):
    """Someone on a phone at night would see grey on black, or half of a table."""
    page.look(width=width, dark=dark)
    page.run("document.querySelectorAll('details').forEach((node) => { node.open = true; })")
    assert page.run(NARROW), "the page scrolls sideways"
    assert page.run(FITS), "the table of costs is cut"
    assert page.run(PALE) == []
    assert page.run("matchMedia('(prefers-color-scheme: dark)').matches") is dark
    page.picture(tmp_path / "page.png", whole=True)
    assert (tmp_path / "page.png").stat().st_size > 50_000
    assert page.errors == []


def test_filters_show_exactly_the_examples_that_fit(page, explorer):
    """Someone who looks for what got worse would miss some of it, and trust the rest."""
    results = {
        "all": lambda mine, theirs: True,
        "won": lambda mine, theirs: mine > theirs,
        "lost": lambda mine, theirs: mine < theirs,
        "right": lambda mine, theirs: mine >= 100,
        "wrong": lambda mine, theirs: mine < 100,
    }
    methods, sizes = ("zero_shot", "untrained", "r2"), set()
    for task, method, result in itertools.product(["", *explorer["tasks"]], methods, results):
        choose(page, task=task, method=method, result=result)
        expected = [
            example["query"]
            for example in explorer["examples"]
            if task in ("", example["task"])
            and results[result](
                example["runs"][method]["score"], example["runs"][explorer["best"]]["score"]
            )
        ]
        assert page.run(SHOWN) == expected, (task, method, result)
        number = f"{len(expected)} example{'' if len(expected) == 1 else 's'}"
        assert page.run("document.getElementById('count').textContent") == number
        sizes.add(len(expected))
    assert len(sizes) > 4, "the run has too little variety for this test to show anything"
    word = explorer["examples"][3]["query"].split()[-1]
    choose(page, task="", method="r2", result="all", text=word.upper())
    assert explorer["examples"][3]["query"] in page.run(SHOWN)
    choose(page, text="no query says this")
    assert "No example fits" in page.run("document.getElementById('detail').textContent")
    assert page.errors == []


def test_an_example_opens_by_keyboard_and_shows_prompt_and_answer(page, workspace):
    """A prompt other than the one that the language model read would explain nothing."""
    folder = workspace.layout.round(2)
    outcomes = {
        row.example_id: row for row in read_records(folder / "evaluation/outcomes.parquet", Outcome)
    }
    pool = {
        row.example_id: row for row in read_records(workspace.layout.data / "pool.parquet", Example)
    }
    by_query = {row.query: row for row in workspace.dataset.test}
    page.run("document.querySelector('#list button').focus()")
    first = page.run(CURRENT)
    page.press("ArrowDown", "ArrowDown")
    query = page.run(CURRENT)
    assert query != first
    assert page.run("document.querySelector('#detail .query').textContent") == query
    assert page.run("document.activeElement.querySelector('.text').textContent") == query
    page.run("document.querySelector('#detail .run[open] .prompt summary').focus()")
    page.press("Enter")
    assert page.run("document.querySelector('#detail .run[open] .prompt').open")
    outcome = outcomes[by_query[query].example_id]
    texts = [pool[name].text for name in outcome.demonstration_ids]
    prompt = page.run("document.querySelector('#detail .run[open] .prompt pre').textContent")
    assert prompt == assemble(texts, query)
    said = page.run("document.querySelector('#detail .run[open] .said').textContent")
    assert said == (outcome.prediction or "(nothing)")
    verdict = page.run("document.querySelector('#detail .run[open] .sign').ariaLabel")
    assert verdict.startswith({100.0: "right", 0.0: "wrong"}.get(outcome.score, "partly right"))
    assert page.errors == []


def test_a_screen_reader_is_told_what_everything_is(page):
    """A control or a table without a name is a riddle to those who only hear it."""
    named = {}
    for node in page.tree():
        role, name = node["role"]["value"], node.get("name", {}).get("value", "")
        named.setdefault(role, []).append(name)
    for role in ("button", "link", "image", "combobox", "searchbox", "region", "navigation"):
        assert named.get(role), f"no {role}"
        assert all(named[role]), f"a {role} without a name: {named[role]}"
    assert {"Task", "Method", "Result"} <= set(named["combobox"])
    assert len(named["heading"]) > 8
    assert "Gain" in " ".join(named["columnheader"])
    assert "BM25" in named["rowheader"]
    skip = "document.activeElement.textContent"
    page.press("Tab")
    assert page.run(skip) == "Skip to the results"
