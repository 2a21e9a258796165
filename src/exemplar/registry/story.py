"""What a registered version has to tell on its page: its making, the gate's report, and its life.

The text is the version's description in MLflow. The gate's report is kept whole beside it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exemplar.data.io import read_json
from exemplar.registry.aliases import resolve
from exemplar.tracking.runs import clean_name
from exemplar.tracking.store import Store, explained

if TYPE_CHECKING:
    from mlflow.entities import Run

GATE = "exemplar.gate"
"""Tag of a version: what the gate said, "promoted" or "refused"."""

_BY_HAND = "exemplar.promoted_by_hand"
_DIGITS = 12  # of a digest: enough to tell data sets apart
_FROM = (
    ("lm.ref", "Language model that scores and answers"),
    ("kd_training.init", "Retriever started from"),
    ("reward_training.init", "Reward model started from"),
)


def introduction(run: Run, round: int) -> str:
    """Return what a version was made from and how well it does, as Markdown, from its run."""
    figures, settings = run.data.metrics, run.data.params
    lines = [f"**Round {round}**, run `{run.info.run_name}`, with `report.html` among its files."]
    if "eval/average" in figures:
        ends = [figures.get(f"eval_{end}/average") for end in ("low", "high")]
        interval = "" if None in ends else " (95 % interval {:.1f} to {:.1f})".format(*ends)
        lines.append(f"- Average {figures['eval/average']:.1f} over all tasks{interval}.")
    lines += [f"- {what}: `{settings[key]}`" for key, what in _FROM if key in settings]
    inputs = sorted(
        f"{item.dataset.name} ({tag.value}, {item.dataset.digest[:_DIGITS]})"
        for item in run.inputs.dataset_inputs
        for tag in item.tags
        if tag.key == "mlflow.data.context"
    )
    if inputs:
        lines.append(f"- Data: {', '.join(inputs)}")
    if commit := run.data.tags.get("mlflow.source.git.commit"):
        lines.append(f"- Code: commit `{commit[:_DIGITS]}`")
    return "\n".join([lines[0], "", *lines[1:]]) + "\n"


def describe(store: Store, name: str, version: str) -> str:
    """Return the version's description. Raises `RegistryError` where there is no such version."""
    resolve(store, f"models:/{name}/{version}")
    with explained(f"reading version {version} of {name!r} from {store.place}"):
        return str(store.client.get_model_version(name, version).description or "")


def store_gate_report(
    store: Store, name: str, version: str, decision: Mapping[str, Any], markdown: str
) -> None:
    """Keep the gate's decision with a version.

    All of it goes beside the run's files (gate/), the text into the version's description, and the
    verdict and each single figure into tags, for the table and for searching.
    """
    with explained(f"storing the gate's report on version {version} of {name!r}"):
        stored = store.client.get_model_version(name, version)
        run = store.client.get_run(stored.run_id)
        store.client.log_dict(run.info.run_id, dict(decision), _path(name, version, "json"))
        store.client.log_text(run.info.run_id, markdown, _path(name, version, "md"))
        # Made anew from the run, so that a repeated step does not tell it twice.
        intro = introduction(run, int(stored.tags.get("exemplar.round", 0)))
        against = f"- Compared by the gate with: {decision.get('against', 'nothing')}\n"
        story = f"{intro}{against}\n{markdown}"
        store.client.update_model_version(name, version, description=story)
        for key, value in decision.items():
            if isinstance(value, str | int | float):
                tag = clean_name(f"gate.{key}")
                store.client.set_model_version_tag(name, version, tag, str(value))
        verdict = "promoted" if decision["promoted"] else "refused"
        store.client.set_model_version_tag(name, version, GATE, verdict)  # last: it is all there


def read_gate_report(store: Store, name: str, version: str) -> dict[str, Any] | None:
    """Return the decision that `store_gate_report` kept for a version, None where there is none."""
    from mlflow.artifacts import download_artifacts

    with explained(f"reading the gate's report on version {version} of {name!r}"):
        stored = store.client.get_model_version(name, version)
        if GATE not in stored.tags:
            return None
        with tempfile.TemporaryDirectory(prefix="exemplar-") as temporary:
            path = download_artifacts(
                run_id=stored.run_id,
                artifact_path=_path(name, version, "json"),
                dst_path=temporary,
                tracking_uri=store.uri,
            )
            report: dict[str, Any] = read_json(Path(path))
            return report


def note_promotion_by_hand(
    store: Store, name: str, version: str, *, at: float | None = None
) -> None:
    """Write into a version's story and tags that a person made it champion. `at`: seconds, UTC."""
    moment = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at))
    story = f"{describe(store, name, version)}\nMade champion by hand on {moment}.\n"
    with explained(f"noting a promotion by hand on version {version} of {name!r}"):
        store.client.update_model_version(name, version, description=story)
        store.client.set_model_version_tag(name, version, _BY_HAND, moment)


def _path(name: str, version: str, suffix: str) -> str:
    return f"gate/{name}-v{version}.{suffix}"
