"""Claims about what users get wrong: one message that helps, exit code 2, nothing half-written."""

import json
import shutil

import pytest
import yaml

from exemplar.data.io import read_records, write_records
from exemplar.records import Candidates


@pytest.fixture
def copy(workspace, tmp_path):
    """A copy of the finished run, to be broken; the MLflow store stays where it is."""
    root = tmp_path / "run"
    shutil.copytree(workspace.root, root, ignore=shutil.ignore_patterns("mlartifacts", "mlflow.db"))
    return root


@pytest.fixture
def refused(run_cli, write_params):
    """Return a function that runs a command which must be refused, and gives its message.

    It checks that the message comes alone, with exit code 2, and that no file came or changed.
    """

    def run(root, *arguments, changes=None, params=None):
        if params is None:
            params = write_params(root / "params.yaml", changes)
        before = contents(root)
        done = run_cli("--params", params, "--root", root, *arguments)
        assert done.code == 2, done.out
        assert done.err.startswith("error: ") or "\nerror: " in done.err, done.err
        message = done.err[done.err.index("error: ") :]
        assert "Traceback" not in message
        assert done.out == ""
        assert contents(root) == before
        return message

    return run


def contents(root):
    return {
        path.relative_to(root).as_posix(): path.read_bytes() if path.is_file() else None
        for path in root.rglob("*")
    }


def break_weights(folder, value, name):
    """Set one whole matrix of a saved model to a value."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    weights = load_file(path)
    (key,) = [key for key in weights if key.endswith(name)]
    weights[key] = weights[key].clone().fill_(value)
    save_file(weights, path, metadata={"format": "pt"})


STEPS = [
    ("bm25-candidates",),
    ("llm-scoring", "--round", 1),
    ("reward-training", "--round", 1),
    ("reward-scoring", "--round", 1),
    ("kd-training", "--round", 1),
    ("search", "--round", 1),
    ("search", "--baseline", "bm25"),
    ("evaluation", "--round", 1),
    ("promotion", "--round", 1),
    ("report",),
]


@pytest.mark.parametrize("command", STEPS)
def test_a_step_before_its_inputs_names_the_missing_file(tmp_path, refused, command):
    """Steps run out of order must say which one comes first."""
    message = refused(tmp_path, *command)
    assert "data/manifest.json does not exist" in message
    assert "dvc repro" in message


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        (("llm-scoring", "--round", 1), "rounds/r1/candidates.parquet"),
        (("reward-training", "--round", 1), "rounds/r1/llm_scores.parquet"),
        (("reward-scoring", "--round", 1), "rounds/r1/reward_model"),
        (("kd-training", "--round", 2), "rounds/r1/rewards.parquet"),
        (("search", "--round", 1), "rounds/r1/retriever"),
        (("evaluation", "--round", 1), "rounds/r1/demonstrations.parquet"),
        (("report",), "rounds/r1/evaluation"),
    ],
)
def test_a_missing_input_is_named(copy, refused, command, missing):
    """The message must name the file, not the function that tripped over it."""
    path = copy / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert missing in refused(copy, *command)


@pytest.mark.parametrize(
    ("command", "broken"),
    [
        (("llm-scoring", "--round", 1), "rounds/r1/candidates.parquet"),
        (("reward-training", "--round", 1), "rounds/r1/llm_scores.parquet"),
        (("kd-training", "--round", 1), "rounds/r1/rewards.parquet"),
        (("evaluation", "--round", 1), "rounds/r1/demonstrations.parquet"),
        (("report",), "rounds/r1/evaluation/outcomes.parquet"),
    ],
)
def test_a_damaged_file_is_named(copy, refused, command, broken):
    """A disk that ran full cuts files off; pyarrow's words alone would not tell which."""
    path = copy / broken
    path.write_bytes(path.read_bytes()[:200])
    message = refused(copy, *command)
    assert broken in message
    assert "not a readable Parquet file" in message


def test_a_damaged_data_file_is_told_by_its_seal(copy, refused):
    """Whatever happened to it, it is not what the manifest describes."""
    path = copy / "data/pool.parquet"
    path.write_bytes(path.read_bytes()[:-10])
    assert "is not the file that" in refused(copy, "bm25-candidates")


def test_a_file_of_another_kind_is_refused(copy, refused):
    """Copied by hand into the wrong place, its columns would be read as something else."""
    shutil.copy(copy / "rounds/r1/rewards.parquet", copy / "rounds/r1/candidates.parquet")
    message = refused(copy, "llm-scoring", "--round", 1)
    assert "expected Candidates records" in message
    assert "got Rewards records" in message


@pytest.mark.parametrize("command", [step for step in STEPS[1:] if step[0] != "search"])
def test_files_of_other_data_are_refused(copy, refused, run_cli, write_params, command):
    """Ids stay the same from seed to seed while the texts behind them change."""
    params = write_params(copy / "other.yaml", {"seed": 4})
    assert run_cli("--params", params, "--root", copy, "download-data").code == 0
    assert "was made from another data" in refused(copy, *command)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kd_training.num_update": 3}, "did you mean 'num_updates'?"),
        ({"search.scope": "everything"}, "'task' or 'pool', got 'everything'"),
        ({"download_data.tasks": ["library_slip"]}, "library_slips"),
        ({"download_data.tasks": ["sst2"]}, "not in the sample set"),
        ({"download_data.source": "local"}, "needs a path"),
        ({"download_data.source": "local", "download_data.path": "nowhere"}, "no folder nowhere"),
    ],
)
def test_a_wrong_setting_is_refused_before_any_work(tmp_path, refused, changes, words):
    """A typing error must not cost a download."""
    assert words in refused(tmp_path, "download-data", changes=changes)


@pytest.mark.parametrize(("text", "words"), [(None, "does not exist"), ("a: [", "is not YAML")])
def test_settings_that_are_no_settings_are_refused(tmp_path, refused, text, words):
    params = tmp_path / "params.yaml"
    if text is not None:
        params.write_text(text)
    assert words in refused(tmp_path, "download-data", params=params)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "no example left"),
        ([{"sentence": "", "label": 1}], "no example left"),
        ([{"sentence": "fine"}], "label"),
        ([{"sentence": "fine", "label": 7}], "7"),
        ("{broken", "line 1 is not JSON"),
    ],
)
def test_a_local_task_that_cannot_be_read_is_refused(tmp_path, refused, rows, words):
    """An empty or misread task would drop out of every average without a word."""
    folder = tmp_path / "raw/sst2"
    folder.mkdir(parents=True)
    text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "train.jsonl").write_text(text)
    (folder / "test.jsonl").write_text(json.dumps({"sentence": "dull", "label": 0}) + "\n")
    changes = {
        "download_data.source": "local",
        "download_data.path": str(tmp_path / "raw"),
        "download_data.tasks": ["sst2"],
    }
    message = refused(tmp_path, "download-data", changes=changes)
    assert words in message
    assert "sst2" in message


def test_an_answer_longer_than_the_budget_names_its_query(copy, refused):
    """Cut off, it would get the probability of another text."""
    message = refused(copy, "llm-scoring", "--round", 1, changes={"lm.max_length": 4})
    assert "query '" in message
    assert "leaves no room" in message
    assert "max_length" in message


def test_a_query_longer_than_the_budget_names_itself(copy, refused):
    """A cut query is another question."""
    message = refused(copy, "evaluation", "--round", 1, changes={"lm.max_length": 12})
    assert "example '" in message
    assert "the query alone takes" in message


@pytest.mark.parametrize("command", [("llm-scoring", "--round", 1), ("evaluation", "--round", 1)])
def test_a_language_model_that_gives_nan_is_refused(copy, refused, tiny_models, tmp_path, command):
    """NaN sorts anywhere: the worst candidates could become the best."""
    shutil.copytree(tiny_models.lm, tmp_path / "lm")
    break_weights(tmp_path / "lm", float("nan"), "layers.1.mlp.down_proj.weight")
    message = refused(copy, *command, changes={"lm.ref": str(tmp_path / "lm")})
    assert "nan" in message.lower()


def test_a_reward_model_that_gives_nan_is_refused(copy, refused):
    """Such rewards would teach the retriever nothing, at full cost."""
    break_weights(copy / "rounds/r1/reward_model", float("nan"), "classifier.weight")
    message = refused(copy, "reward-scoring", "--round", 1)
    assert "gave nan for query" in message


def test_a_retriever_that_gives_nan_is_refused(copy, refused):
    """Every search by it would return whatever comes first."""
    break_weights(copy / "rounds/r1/retriever", float("nan"), "word_embeddings.weight")
    message = refused(copy, "search", "--round", 1)
    assert "NaN" in message


@pytest.mark.parametrize(
    ("command", "key"),
    [
        (("llm-scoring", "--round", 1), "lm.ref"),
        (("reward-training", "--round", 1), "reward_training.init"),
        (("kd-training", "--round", 1), "kd_training.init"),
        (("search", "--baseline", "untrained"), "kd_training.init"),
    ],
)
@pytest.mark.parametrize("kind", ["empty", "missing", "package"])
def test_a_model_that_is_none_is_refused(copy, refused, tmp_path, command, key, kind):
    """The message must name what was given: there are three models in the settings."""
    ref = {
        "empty": str(tmp_path / "empty"),
        "missing": str(tmp_path / "missing/model"),
        "package": "package:no_such_package_here/model",
    }[kind]
    (tmp_path / "empty").mkdir()
    message = refused(copy, *command, changes={key: ref})
    assert ref in message
    if kind == "package":
        assert "pip install" in message


def test_an_encoder_is_no_language_model(copy, refused, tiny_models):
    """Its vocabulary projection would be random numbers."""
    message = refused(
        copy, "llm-scoring", "--round", 1, changes={"lm.ref": str(tiny_models.encoder)}
    )
    assert "causal" in message


def test_a_teacher_too_weak_stops_before_its_model_is_kept(copy, refused):
    """The old model stays; the one that was refused must not take its place."""
    changes = {"reward_training.min_accuracy": 0.99}
    message = refused(copy, "reward-training", "--round", 1, changes=changes)
    assert "too weak to teach" in message
    assert "0.990" in message
    shutil.rmtree(copy / "rounds/r1/reward_model")
    refused(copy, "reward-training", "--round", 1, changes=changes)
    assert not (copy / "rounds/r1/reward_model").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reward_training.warmup": 4}, "warmup is 4 (expected 0 to 3)"),
        ({"reward_training.max_length": 500}, "max_length 500 does not suit"),
        ({"reward_training.learning_rate": 1e30}, "Lower the learning rate"),
    ],
)
def test_a_training_that_cannot_work_says_why(copy, refused, changes, words):
    """Nothing of a training that failed may look like a model."""
    assert words in refused(copy, "reward-training", "--round", 1, changes=changes)


def test_a_summary_without_results_says_what_to_run(tmp_path, refused):
    """An empty table would look like a bug."""
    assert "Run `exemplar run`" in refused(tmp_path, "summary")


@pytest.mark.parametrize("command", [("registry",), ("rollback",), ("select", "a text")])
def test_before_the_first_promotion_there_is_no_registry_and_none_is_made(
    tmp_path, refused, command
):
    """A look at the registry must not create one in whatever folder one happens to be."""
    message = refused(tmp_path, *command)
    assert "There is no MLflow database" in message


def test_a_baseline_of_an_unknown_method_is_refused(workspace, tmp_path, refused):
    raw = yaml.safe_load(workspace.params_path.read_text())
    raw["baselines"]["tfidf"] = {"method": "tfidf"}
    params = tmp_path / "params.yaml"
    params.write_text(yaml.safe_dump(raw))
    message = refused(tmp_path, "search", "--baseline", "tfidf", params=params)
    assert "baselines.tfidf.method" in message


def test_a_candidate_that_is_not_in_the_pool_is_named(copy, refused):
    """Written by another tool, a file may name examples that nobody has."""
    path = copy / "rounds/r1/candidates.parquet"
    first, *others = read_records(path, Candidates)
    wrong = Candidates(first.query_id, ("nobody", *first.candidate_ids[1:]), first.similarities)
    from exemplar.data.io import made_from

    write_records(path, Candidates, [wrong, *others], made_from=made_from(path))
    message = refused(copy, "reward-scoring", "--round", 1)
    assert "'nobody'" in message
