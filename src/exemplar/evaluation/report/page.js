// The explorer: filters, a list of test examples, and one example in full. Text from data goes in
// by textContent only. Without the explorer's data there is nothing to do.
"use strict";
(() => {
  const source = document.getElementById("explorer-data");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const filters = document.getElementById("filters");
  const list = document.getElementById("list");
  const detail = document.getElementById("detail");
  const count = document.getElementById("count");
  const best = data.methods.find((method) => method.key === data.best);
  const STEP = 100; // list entries added at once
  let shown = [];
  let limit = STEP;
  let current = null;

  const make = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const sign = (score) => {
    const [name, mark, word] =
      score >= 100 ? ["right", "✓", "right"]
      : score > 0 ? ["partly", "◐", `partly right, ${score.toFixed(0)} of 100`]
      : ["wrong", "✗", "wrong"];
    const node = make("span", `sign ${name}`, mark);
    node.setAttribute("role", "img");
    node.setAttribute("aria-label", word);
    return node;
  };
  const options = (name, pairs) => {
    for (const [value, text] of pairs) {
      const option = make("option", "", text);
      option.value = value;
      filters.elements[name].append(option);
    }
  };

  const score = (example, key) => example.runs[key].score;
  const results = {
    all: () => true,
    won: (mine, theirs) => mine > theirs,
    lost: (mine, theirs) => mine < theirs,
    right: (mine) => mine >= 100,
    wrong: (mine) => mine < 100,
  };

  function filter() {
    const { task, method, result, text } = filters.elements;
    const words = text.value.trim().toLowerCase();
    shown = data.examples.filter((example) => {
      if (task.value && example.task !== task.value) return false;
      const mine = score(example, method.value);
      const theirs = best ? score(example, best.key) : mine;
      if (!results[result.value](mine, theirs)) return false;
      return !words || `${example.query}\n${example.answers.join("\n")}`.toLowerCase().includes(words);
    });
    limit = STEP;
    current = shown.includes(current) ? current : shown[0] || null;
    draw();
    open(current);
  }

  function draw() {
    const key = filters.elements.method.value;
    count.textContent = `${shown.length} example${shown.length === 1 ? "" : "s"}`;
    const rows = shown.slice(0, limit).map((example) => {
      const button = make("button");
      button.type = "button";
      button.setAttribute("aria-current", String(example === current));
      button.append(sign(score(example, key)), make("span", "text", example.query), make("span", "task", example.task));
      button.addEventListener("click", () => choose(example, true));
      const row = make("li");
      row.append(button);
      return row;
    });
    if (shown.length > limit) {
      const more = make("button", "", `Show ${Math.min(STEP, shown.length - limit)} more`);
      more.type = "button";
      more.addEventListener("click", () => { limit += STEP; draw(); });
      const row = make("li");
      row.append(more);
      rows.push(row);
    }
    list.replaceChildren(...rows);
  }

  function choose(example, follow) {
    current = example;
    shown.slice(0, limit).forEach((other, index) => {
      list.children[index].firstChild.setAttribute("aria-current", String(other === example));
    });
    open(example);
    if (follow && matchMedia("(max-width: 44rem)").matches) detail.scrollIntoView();
  }

  // What the language model read: the nearest demonstration last, then the query (prompts.py).
  function prompt(outcome, example) {
    const node = make("details", "prompt");
    node.append(make("summary", "", "The prompt"));
    const kept = outcome.demonstrations.map(([index]) => data.pool[index]);
    const parts = kept.map(([query, answer]) => `${query}\n${answer}`).reverse();
    const text = make("pre", "", `${[...parts, example.query].join("\n\n")}\n`);
    text.tabIndex = 0;
    node.append(text);
    if (kept.some(([, , cut]) => cut)) {
      node.append(make("p", "hint", `Long demonstrations are cut here at ${data.longest} characters; the prompt held all of them.`));
    }
    return node;
  }

  function run(method, example, unfold) {
    const outcome = example.runs[method.key];
    const node = make("details", "run");
    node.open = unfold;
    const number = outcome.demonstrations.length;
    const line = make("summary");
    line.append(sign(outcome.score), make("span", "name", method.label), make("span", "said", outcome.answer || "(nothing)"));
    line.append(make("span", "more", number ? `${number} shown` : "none shown"));
    node.append(line);
    const demonstrations = make("ol");
    for (const [index, similarity] of outcome.demonstrations) {
      const [query, answer] = data.pool[index];
      const words = make("div");
      words.append(make("p", "", query), make("p", "shown", answer));
      const row = make("li");
      row.append(make("span", "similarity", similarity === null ? "" : similarity.toFixed(similarity < 10 ? 3 : 1)), words);
      demonstrations.append(row);
    }
    node.append(demonstrations);
    node.append(prompt(outcome, example));
    if (outcome.dropped) node.append(make("p", "hint", `${outcome.dropped} more did not fit the prompt.`));
    return node;
  }

  function open(example) {
    if (!example) {
      detail.replaceChildren(make("p", "hint", "No example fits. Choose another task or result."));
      return;
    }
    const parts = [make("h3", "", `Query, ${example.task}`), make("p", "query", example.query)];
    if (example.choices.length) {
      const choices = make("ol", "choices");
      example.choices.forEach((choice, index) => {
        choices.append(make("li", index === example.gold ? "gold" : "", choice));
      });
      parts.push(choices);
    }
    parts.push(make("h3", "", example.answers.length > 1 ? "Accepted answers" : "Right answer"));
    parts.push(make("p", "gold-answer", example.answers.join(" · ")));
    parts.push(make("h3", "", "What each method got. The nearest demonstration comes first, with its similarity"));
    const key = filters.elements.method.value;
    const ordered = [...data.methods].sort((a, b) => (b.key === key) - (a.key === key));
    detail.replaceChildren(...parts, ...ordered.map((method) => run(method, example, method.key === key)));
  }

  options("task", [["", "All tasks"], ...data.tasks.map((task) => [task, task])]);
  options("method", data.methods.map((method) => [method.key, method.label]));
  filters.elements.method.value = data.chosen;
  options("result", [
    ["all", "All"],
    ...(best ? [["won", `Better than ${best.label}`], ["lost", `Worse than ${best.label}`]] : []),
    ["right", "Right"],
    ["wrong", "Not fully right"],
  ]);
  filters.addEventListener("input", filter);
  filters.addEventListener("submit", (event) => event.preventDefault());
  list.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const next = step && shown[shown.indexOf(current) + step];
    if (!next) return;
    event.preventDefault();
    choose(next, false);
    const row = list.children[shown.indexOf(next)];
    if (row) row.firstChild.focus();
  });
  filter();
})();
