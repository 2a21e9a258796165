"""Claims about `exemplar run`: options reach params.yaml, comments stay, and DVC is started."""

import subprocess
import sys
from pathlib import Path

import pytest

from exemplar import runner
from exemplar.config import load_params
from exemplar.errors import ConfigError

NOTHING = {"profile": None, "source": None, "data_path": None, "tasks": None, "settings": ()}


@pytest.fixture
def params(project, tmp_path):
    """A copy of the project's params.yaml."""
    path = tmp_path / "params.yaml"
    path.write_text((project / "params.yaml").read_text())
    return path


def test_without_options_the_file_is_left_alone(params):
    """Rewriting it on every run would touch what the user never asked to change."""
    before = params.read_bytes(), params.stat().st_mtime_ns
    runner.set_params(params, **NOTHING)
    assert (params.read_bytes(), params.stat().st_mtime_ns) == before


def test_a_setting_changes_its_own_line_and_nothing_else(params):
    """Comments and layout are the user's: an editor that drops them is not used twice."""
    before = params.read_text().splitlines()
    runner.set_params(params, **{**NOTHING, "settings": ["kd_training.num_updates=7"]})
    after = params.read_text().splitlines()
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    ((old, new),) = changed
    assert old.startswith("      num_updates: ")
    assert new == "      num_updates: 7"
    assert load_params(params).active.kd_training.num_updates == 7


@pytest.mark.parametrize(("path", "kept"), [(None, None), ("mirror", "mirror")])
def test_the_hub_takes_no_local_folder_for_a_mirror(params, path, kept):
    """A profile's folder of local files would be searched for data sets of the hub."""
    hub = {"profile": "cpu", "source": "hub", "data_path": path}
    runner.set_params(params, **{**NOTHING, **hub})
    assert load_params(params).active.download_data.path == kept


def test_a_release_comes_whole_whatever_the_profile_says(params):
    """The demo's max_pool would cut the passages that scores name by their place."""
    given = {"source": "released", "data_path": "files"}
    runner.set_params(params, **{**NOTHING, **given})
    section = load_params(params).active.download_data
    assert (section.source, section.path, section.max_pool) == ("released", "files", None)


def test_all_options_reach_the_chosen_profile(params):
    """What DVC does not see in params.yaml it neither records nor acts on."""
    runner.set_params(
        params,
        profile="cpu",
        source="local",
        data_path="some/where",
        tasks="sst2, snli",
        settings=["seed=5", "kd_training.learning_rate=1e-4", "report.title=Two tasks"],
    )
    loaded = load_params(params)
    assert loaded.profile == "cpu"
    assert loaded.active.download_data.source == "local"
    assert loaded.active.download_data.path == "some/where"
    assert loaded.active.download_data.tasks == ("sst2", "snli")
    assert loaded.active.seed == 5
    assert loaded.active.kd_training.learning_rate == 1e-4
    assert loaded.active.report.title == "Two tasks"
    assert loaded.profiles["demo"].seed == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"settings": ["kd_training.num_updates"]}, "expects KEY=VALUE"),
        ({"settings": ["=3"]}, "expects KEY=VALUE"),
        ({"settings": ["seed=[1"]}, "is not YAML"),
        ({"settings": ["kd_trainig.num_updates=3"]}, "no section 'kd_trainig'"),
        ({"settings": ["kd_training.num_update=3"]}, "no 'num_update' here; known: init"),
        ({"settings": ["seed.deeper=3"]}, "no section 'seed'|known: none"),
        ({"settings": ["kd_training.num_updates=few"]}, "the new settings.*valid integer"),
        ({"profile": "big"}, "expected one of"),
        ({"profile": "big", "settings": ["seed=3"]}, "big"),
        ({"source": "cloud"}, "'local', 'hub', 's3' or 'released'"),
        ({"source": "local"}, "needs a path"),
    ],
)
def test_a_wrong_option_is_refused_and_the_file_stays_as_it_was(params, options, words):
    """Half-written settings would make every later command fail, for an error that is gone."""
    before = params.read_bytes()
    with pytest.raises(ConfigError, match=f"(?s){words}"):
        runner.set_params(params, **{**NOTHING, **options})
    assert params.read_bytes() == before
    assert [path.name for path in params.parent.iterdir()] == ["params.yaml"]


def test_a_broken_file_is_reported_as_it_is(params):
    """Blaming the option for an older error in the file would send the user astray."""
    params.write_text(params.read_text().replace("profile: demo", "profil: demo"))
    with pytest.raises(ConfigError, match=r"(?s)params\.yaml:.*profil: unknown key"):
        runner.set_params(params, **{**NOTHING, "settings": ["seed=1"]})


def test_outside_a_project_dvc_is_not_started(tmp_path, monkeypatch):
    """DVC's own message there speaks of its internals."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"no \.dvc folder here"):
        runner.repro()


def test_stages_find_the_commands_of_this_environment(tmp_path, monkeypatch):
    """A stage that calls another environment's `exemplar` runs other code than was asked for."""
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], check=True)
    (tmp_path / "dvc.yaml").write_text(
        "stages:\n  who:\n    cmd: command -v exemplar > found\n    outs: [found]\n"
    )
    assert runner.repro() == 0
    assert Path((tmp_path / "found").read_text().strip()).parent == Path(sys.executable).parent


def test_a_failed_stage_s_exit_code_is_passed_on(tmp_path, monkeypatch):
    """A wrong setting is exit code 2 of its step, and so of the run: DVC makes 255 of it."""
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], check=True)
    (tmp_path / "dvc.yaml").write_text("stages:\n  fails:\n    cmd: exit 2\n")
    assert runner.repro() == 2
    assert runner.repro(["no-such-stage"]) == 255
