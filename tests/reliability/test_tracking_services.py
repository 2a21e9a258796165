"""Claims about MLflow on PostgreSQL with files on S3, directly and through a server with users.

Run with `pytest -m services`. The store is set up by the scripts that the images use (mlflow/), its
processes are those of infra/checks. `python infra/checks/services.py` checks the set-up itself.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.services,
    pytest.mark.skipif(
        shutil.which("initdb") is None or shutil.which("pg_ctl") is None,
        reason="initdb and pg_ctl are not on PATH (Debian: apt-get install postgresql)",
    ),
]
LOG = """
import sys
from pathlib import Path
from exemplar.tracking import runs
from exemplar.tracking.store import open_store
store = open_store(Path.cwd(), "together")
note = Path(sys.argv[1] + ".md")
note.write_text(sys.argv[1])
curve = [(update, 1 / (1 + update)) for update in range(300)]
for number in range(3):
    runs.log_run(store, name=f"{sys.argv[1]}/{number}", kind="round", round=1,
        params={"number": number}, metrics={"x": number}, curves={"loss": curve}, artifacts=[note])
"""
LOOK = """
import json
from pathlib import Path
from exemplar.tracking.store import open_store
store = open_store(Path.cwd(), "together", create=False)
found = {}
for run in store.client.search_runs([store.experiment_id]):
    points = store.client.get_metric_history(run.info.run_id, "loss")
    files = [item.path for item in store.client.list_artifacts(run.info.run_id)]
    number = run.data.params["number"], run.data.metrics["x"]
    found[run.info.run_name] = [run.info.status, *number, len(points), *files]
    place = run.info.artifact_uri
print(json.dumps([found, place]))
"""
PROMOTE = """
import json, sys
from pathlib import Path
from exemplar.registry import aliases
from exemplar.tracking.store import open_store
store, moves = open_store(Path.cwd()), []
waiting = sys.argv[1].split()
while waiting:
    compared = aliases.aliases_of(store, "m").get("champion", "")
    if aliases.promote(store, "m", waiting[0], instead_of=compared):
        moves.append((compared, waiting.pop(0)))
print(json.dumps([moves, aliases.aliases_of(store, "m")]))
"""
REGISTER = """
from pathlib import Path
from exemplar.tracking.store import open_store
store = open_store(Path.cwd(), "together")
store.client.create_registered_model("m")
for _ in range(4):
    store.client.create_model_version("m", source="s3://exemplar/nothing")
"""


@pytest.fixture(scope="module")
def services():
    """The environments of a client of the server, and of one that goes to the stores itself."""
    sys.path.insert(0, str(PROJECT / "infra" / "checks"))
    try:
        from processes import free_port, postgres, process, until
    finally:
        sys.path.pop(0)
    database, store, server = (free_port() for _ in range(3))
    values = {
        "POSTGRES_HOST": "127.0.0.1",
        "POSTGRES_PORT": str(database),
        "POSTGRES_USER": "mlflow",
        "POSTGRES_PASSWORD": secrets.token_urlsafe(12),
        "POSTGRES_DB": "mlflow",
        "MLFLOW_BUCKET": "exemplar",
        "MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{store}",
        "AWS_ACCESS_KEY_ID": "exemplar",
        "AWS_SECRET_ACCESS_KEY": secrets.token_urlsafe(12),
        "AWS_DEFAULT_REGION": "us-east-1",
        "MLFLOW_AUTH_ADMIN_USERNAME": "admin",
        "MLFLOW_AUTH_ADMIN_PASSWORD": secrets.token_urlsafe(12),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_urlsafe(12),
        "MLFLOW_SERVER_ALLOWED_HOSTS": f"localhost:{server}",
        "MLFLOW_HOST": "127.0.0.1",
        "MLFLOW_PORT": str(server),
        "MLFLOW_WORKERS": "1",
    }
    environment = {**os.environ, **values}
    address = f"http://localhost:{server}"
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="services-")))
        root.chmod(0o711)  # PostgreSQL's own user must get through
        logs = root / "logs"
        logs.mkdir()
        stack.enter_context(postgres(root / "postgres", values, logs))
        words = [sys.executable, "-m", "moto.server", "-p", str(store)]
        stack.enter_context(process(words, environment, logs / "s3"))
        run([str(PROJECT / "mlflow/make_bucket.py")], environment, root)
        words = [sys.executable, str(PROJECT / "mlflow/start_server.py")]
        started = stack.enter_context(process(words, environment, logs / "mlflow"))
        until("the tracking server", lambda: healthy(f"{address}/health"), started)
        user, password = values["POSTGRES_USER"], values["POSTGRES_PASSWORD"]
        yield {
            "server": {
                **os.environ,
                "MLFLOW_TRACKING_URI": address,
                "MLFLOW_TRACKING_USERNAME": "admin",
                "MLFLOW_TRACKING_PASSWORD": values["MLFLOW_AUTH_ADMIN_PASSWORD"],
            },
            "direct": environment
            | {
                "MLFLOW_TRACKING_URI": (
                    f"postgresql+psycopg2://{user}:{password}@127.0.0.1:{database}/mlflow"
                ),
                "MLFLOW_DEFAULT_ARTIFACT_ROOT": "s3://exemplar/direct",
            },
        }


def healthy(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def run(words, environment, folder):
    done = subprocess.run(
        [sys.executable, *words], env=environment, cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def together(script, environment, folder, *each):
    """Run the script once for each argument, all at once, and give what they printed."""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", script, argument],
            env=environment,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for argument in each
    ]
    results = [process.communicate(timeout=240) for process in running]
    assert not any(process.returncode for process in running), results
    return [out for out, _ in results]


@pytest.mark.parametrize("way", ["server", "direct"])
def test_processes_that_log_at_once_lose_nothing(services, way, tmp_path):
    """Steps of one pipeline log at the same time; a lost run is a result nobody can find again."""
    environment = services[way]
    script = LOG.replace("together", way)
    together(script, environment, tmp_path, "a", "b", "c")
    found, place = json.loads(run(["-c", LOOK.replace("together", way)], environment, tmp_path))
    assert found == {
        f"{name}/{number}": ["FINISHED", str(number), number, 300, f"{name}.md"]
        for name in "abc"
        for number in range(3)
    }
    expected = {"server": "mlflow-artifacts:", "direct": "s3://exemplar/direct"}
    assert place.startswith(expected[way])
    assert {path.name for path in tmp_path.iterdir()} == {"a.md", "b.md", "c.md"}, "files stayed"


def test_two_promotions_at_once_over_http_leave_no_torn_aliases(services, tmp_path):
    """`previous` would name a version that was never champion, and rollback would lead there."""
    environment = services["server"]
    run(["-c", REGISTER], environment, tmp_path)
    found = [json.loads(out) for out in together(PROMOTE, environment, tmp_path, "1 3", "2 4")]
    followers = dict(found[0][0] + found[1][0])
    order = [""]
    while order[-1] in followers:
        order.append(followers[order[-1]])
    assert len(order) == 5, followers
    last = found[0][1] if found[0][1].get("champion") == order[-1] else found[1][1]
    assert last == {"champion": order[-1], "previous": order[-2]}


def test_without_a_password_there_is_one_clear_error(services, tmp_path):
    """A login page parsed as an answer would end in a stack of JSON errors."""
    environment = {
        name: value
        for name, value in services["server"].items()
        if name not in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
    }
    words = [sys.executable, "-m", "exemplar", "--params", str(PROJECT / "params.yaml"), "registry"]
    done = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "401" in done.stderr or "not authenticated" in done.stderr.lower()
    assert "Traceback" not in done.stderr


def test_a_database_without_a_place_for_files_is_refused(services, tmp_path):
    """MLflow would put the files into the current folder, where no other machine finds them."""
    environment = dict(services["direct"])
    del environment["MLFLOW_DEFAULT_ARTIFACT_ROOT"]
    words = [sys.executable, "-c", LOG.replace("together", "nowhere"), "a"]
    done = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert "Set MLFLOW_DEFAULT_ARTIFACT_ROOT" in done.stderr
    assert environment["POSTGRES_PASSWORD"] not in done.stderr.splitlines()[-1]
