"""Claims about params.yaml: what is refused, in which words, and what the profiles hold."""

import pytest
import yaml

from exemplar.config import Params, Profile, load_params
from exemplar.errors import ConfigError

PAPER_TABLE_7 = {
    "llm_scoring": {"num_candidates": 32},
    "bm25_candidates": {"num_candidates": 100},
    "reward_training": {
        "init": "google/electra-base-discriminator",
        "learning_rate": 1e-5,
        "batch_size": 128,
        "num_updates": 3000,
        "warmup": 400,
        "num_top": 3,
        "num_bottom": 16,
        "num_negatives": 7,
        "max_length": 384,
    },
    "kd_training": {
        "init": "intfloat/e5-base-v2",
        "learning_rate": 3e-5,
        "batch_size": 256,
        "num_updates": 6000,
        "warmup": 400,
        "num_top": 3,
        "num_bottom": 16,
        "num_negatives": 3,
        "max_length": 256,
        "temperature": 0.01,
        "contrastive_weight": 0.2,
    },
    "search": {"num_shots": 8, "num_candidates": 100},
    "evaluation": {"max_new_tokens": 64},
    "download_data": {"max_train": 30_000, "max_test": 10_000},
    "lm": {"ref": "huggyllama/llama-7b"},
}


@pytest.fixture
def raw(tmp_path, write_params):
    return yaml.safe_load(write_params(tmp_path / "valid.yaml").read_text())


@pytest.fixture
def refusal(tmp_path):
    """Return a function that gives the message with which a document is refused."""

    def refused(document: object) -> str:
        path = tmp_path / "params.yaml"
        path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
        with pytest.raises(ConfigError) as caught:
            load_params(path)
        return str(caught.value)

    return refused


def test_the_projects_own_settings_load(project):
    """A params.yaml that does not load stops everything at the first command."""
    params = load_params(project / "params.yaml")
    assert {"demo", "cpu", "paper"} <= set(params.profiles)
    assert params.active is params.profiles[params.profile]
    assert list(params.rounds)[:2] == ["r1", "r2"]


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [(s, k, v) for s, values in PAPER_TABLE_7.items() for k, v in values.items()],
)
def test_the_paper_profile_holds_the_papers_numbers(project, section, key, value):
    """Whoever compares with the paper (arXiv 2307.07164, table 7) must run its numbers."""
    paper = load_params(project / "params.yaml").profiles["paper"]
    assert getattr(getattr(paper, section), key) == value


def test_a_misspelt_key_is_refused_with_the_right_spelling(raw, refusal):
    """A key that nobody reads would leave the default in force, unseen."""
    section = raw["profiles"]["tiny"]["kd_training"]
    section["num_update"] = section.pop("num_updates")
    message = refusal(raw)
    assert "profiles.tiny.kd_training.num_update: unknown key" in message
    assert "did you mean 'num_updates'?" in message


def test_a_misspelt_section_is_refused_with_the_right_spelling(raw, refusal):
    """The same, one level up."""
    raw["profiles"]["tiny"]["kd_trainig"] = {}
    assert "profiles.tiny.kd_trainig: unknown key; did you mean 'kd_training'?" in refusal(raw)


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("kd_training.num_updates", "many", "valid integer, got 'many'"),
        ("kd_training.num_updates", 0, "greater than or equal to 1, got 0"),
        ("kd_training.num_updates", 1.5, "got 1.5"),
        ("kd_training.homogeneous_batches", 1, "valid boolean, got 1"),
        ("reward_training.min_accuracy", 1.0, "less than 1, got 1.0"),
        ("search.scope", "everything", "'task' or 'pool', got 'everything'"),
        ("lm.ref", None, "valid string, got None"),
        ("download_data.tasks", [], "at least 1"),
        ("seed", -1, "greater than or equal to 0, got -1"),
    ],
)
def test_a_wrong_value_is_refused_with_its_place_and_itself(raw, refusal, place, value, words):
    """A value that is silently converted runs for hours before anyone notices."""
    *parents, last = place.split(".")
    section = raw["profiles"]["tiny"]
    for name in parents:
        section = section[name]
    section[last] = value
    message = refusal(raw)
    assert f"profiles.tiny.{place}" in message
    assert words in message


def test_an_exponent_without_a_point_is_explained(raw, refusal):
    """YAML reads 1e-4 as text: "not a number, got '1e-4'" alone would baffle anyone."""
    raw["profiles"]["tiny"]["kd_training"]["learning_rate"] = "1e-4"
    assert "write 1.0e-4" in refusal(raw)
    assert yaml.safe_load("1e-2") == "1e-2"


def test_every_error_is_reported_at_once(raw, refusal):
    """One error a run would cost as many runs as errors."""
    raw["profiles"]["tiny"]["seed"] = "x"
    raw["profiles"]["tiny"]["search"]["num_shot"] = 3
    raw["profil"] = "tiny"
    message = refusal(raw)
    for place in ("profiles.tiny.seed", "profiles.tiny.search.num_shot", "profil: unknown key"):
        assert place in message


def test_settings_that_contradict_each_other_are_refused(raw, refusal):
    """More candidates drawn than proposed would quietly score fewer than asked for."""
    raw["profiles"]["tiny"]["llm_scoring"]["num_candidates"] = 11
    assert "llm_scoring.num_candidates is 11" in refusal(raw)


@pytest.mark.parametrize("inside", ["user:secret@", "secret@"])
def test_a_servers_address_with_a_password_is_refused_without_repeating_it(raw, refusal, inside):
    """Settings go into MLflow, dvc.lock and files: whoever reads those would read the key."""
    raw["profiles"]["tiny"]["lm"]["ref"] = f"openai:model@https://{inside}host/v1"
    message = refusal(raw)
    assert "EXEMPLAR_LM_API_KEY" in message
    assert "secret" not in message
    raw["profiles"]["tiny"]["lm"]["ref"] = "openai:owner/model@https://host/v1"
    Params.model_validate(raw)


def test_a_local_source_needs_a_path(raw, refusal):
    raw["profiles"]["tiny"]["download_data"]["source"] = "local"
    assert "source 'local' needs a path" in refusal(raw)


@pytest.mark.parametrize(
    "change",
    [
        {"r1": {"number": 2}},
        {"r1": {"next": "r3"}},
        {"r2": {"after": "data/manifest.json"}},
        {"r4": {"number": 4, "next": "r5", "after": "rounds/r3/promotion.json"}},
    ],
)
def test_rounds_that_do_not_follow_each_other_are_refused(raw, refusal, change):
    """DVC would join the wrong files, or promote two rounds at the same time."""
    for name, values in change.items():
        raw["rounds"].setdefault(name, {}).update(values)
    assert "must read r" in refusal(raw)


@pytest.mark.parametrize("name", ["r1", "../data", "Big", "", "a b"])
def test_a_baseline_whose_folder_would_clash_is_refused(raw, refusal, name):
    """A baseline called r1 would overwrite the first round's costs and its row of the table."""
    raw["baselines"][name] = {"method": "bm25"}
    assert f"baseline {name!r}" in refusal(raw)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [("profile", "big", "expected one of ['tiny']"), ("rounds", {}, "at least 1")],
)
def test_an_unknown_profile_and_no_round_are_refused(raw, refusal, key, value, words):
    raw[key] = value
    assert words in refusal(raw)


def test_what_is_trained_beside_the_rounds_is_a_baseline_of_its_own_name(raw, refusal, tmp_path):
    """Two methods in one folder would be judged as one."""
    raw["trained"] = {"epr": {"teacher": "llm_scores", "path": "rounds/r1/llm_scores.parquet"}}
    raw["profiles"]["tiny"]["promotion"]["baseline"] = "epr"
    (tmp_path / "good.yaml").write_text(yaml.safe_dump(raw))
    params = load_params(tmp_path / "good.yaml")
    assert list(params.beside) == [*params.baselines, "epr"]
    raw["trained"]["bm25"] = raw["trained"]["epr"]
    assert "'bm25' names both" in refusal(raw)
    raw["trained"] = {"r1": raw["trained"]["epr"]}
    assert "not the name of a round" in refusal(raw)
    raw["trained"] = {"epr": {"teacher": "me", "path": "x"}}
    assert "'llm_scores' or 'rewards', got 'me'" in refusal(raw)


def test_prefixes_without_an_encoder_are_refused(raw, refusal):
    """BM25 with a prefix runs, and the prefix is nowhere."""
    raw["baselines"]["bm25"]["query_prefix"] = "query: "
    assert "method bm25 has no encoder, so query_prefix says nothing" in refusal(raw)


@pytest.mark.parametrize(("key", "value"), [("max_pool", 9), ("wording", 1)])
def test_a_release_cannot_be_thinned_or_reworded(raw, refusal, key, value):
    """Its scores name passages by their place."""
    section = raw["profiles"]["tiny"]["download_data"]
    section |= {"source": "released", "max_pool": None, key: value}
    assert "'released' keeps every passage" in refusal(raw)


def test_a_leak_is_allowed_where_leaks_may_stay_alone(raw, refusal):
    """Whoever names a task and still has its rows dropped believes in other figures."""
    section = raw["profiles"]["tiny"]["download_data"]
    section |= {"allowed_leaks": ["sst2"]}
    assert "only where drop_test_queries is false" in refusal(raw)


def test_the_gates_first_opponent_must_be_a_baseline(raw, refusal):
    """Otherwise the first promotion fails after hours of training."""
    raw["profiles"]["tiny"]["promotion"]["baseline"] = "bm26"
    assert "promotion.baseline is 'bm26'" in refusal(raw)


@pytest.mark.parametrize(
    ("text", "words"),
    [("profile: [", "is not YAML"), ("", "got None"), ("- a\n- b", "got ['a', 'b']")],
)
def test_a_file_that_is_no_mapping_is_refused(refusal, text, words):
    assert words in refusal(text)


def test_a_missing_file_says_where_to_run(tmp_path):
    with pytest.raises(ConfigError, match=r"does not exist\. Run from the project's root"):
        load_params(tmp_path / "params.yaml")


def test_settings_cannot_be_changed_after_reading(project):
    """A step that changes a setting would make the next one run on something not written down."""
    profile = load_params(project / "params.yaml").active
    with pytest.raises(ValueError, match="frozen"):
        profile.search.num_shots = 1


def test_every_profile_spells_out_every_setting_that_dvc_watches(project):
    """A default that is not in params.yaml can change in the code without DVC noticing."""
    raw = yaml.safe_load((project / "params.yaml").read_text())
    params = load_params(project / "params.yaml")
    optional = {"promotion": {"entry_script"}}
    for name, profile in params.profiles.items():
        for section in Profile.model_fields:
            if section == "seed":
                continue
            known = set(getattr(profile, section).model_dump()) - optional.get(section, set())
            assert set(raw["profiles"][name][section]) >= known, f"{name}.{section}"
    assert set(Params.model_fields) == set(raw)
