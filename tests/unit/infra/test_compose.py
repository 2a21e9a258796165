"""Claims about infra/compose.yaml and the scripts of the tracking server that it starts."""

import configparser
import re
import subprocess
import sys

import pytest
import yaml

VARIABLE = re.compile(r"\$\{(\w+)(:[?-])?([^}]*)\}")


@pytest.fixture(scope="module")
def text(project):
    return (project / "infra/compose.yaml").read_text()


@pytest.fixture(scope="module")
def whole(text):
    """The file as Compose sees it: variables filled in, anchors merged."""

    def filled(found):
        return found[3] if found[2] == ":-" else f"given-{found[1]}"

    return yaml.safe_load(VARIABLE.sub(filled, text))


@pytest.fixture(scope="module")
def services(whole):
    return whole["services"]


def test_compose_reads_it(whole):
    """A key that Compose does not know stops `up` on the user's machine."""
    compose_spec = pytest.importorskip("compose_spec", reason="compose-spec is not installed")
    parsed = compose_spec.PyCompose.from_yaml(yaml.safe_dump(whole))
    assert set(parsed.service_names()) == set(whole["services"])
    whole["services"]["s3"]["helthcheck"] = {}
    with pytest.raises(ValueError, match="helthcheck"):
        compose_spec.PyCompose.from_yaml(yaml.safe_dump(whole))
    del whole["services"]["s3"]["helthcheck"]


def test_nothing_starts_without_its_secrets(text, project):
    """A default password is everybody's password."""
    told = dict(
        line.split("=", 1)
        for line in (project / "infra/.env.example").read_text().splitlines()
        if "=" in line and not line.startswith("#")
    )
    assert not any(told.values()), "the template holds a value"
    needed = {name for name, mark, _ in VARIABLE.findall(text) if mark == ":?"}
    assert needed <= set(told)
    secret = re.compile(r"PASSWORD|SECRET|_KEY")
    for name, mark, _ in VARIABLE.findall(text):
        assert mark == ":?" or (mark == ":-" and not secret.search(name)), name


def test_services_are_pinned_watched_and_reached_from_this_machine_alone(services):
    """An open port with a database behind it is found within hours."""
    for name, service in services.items():
        assert re.search(r":\d+(\.\d+)+", service["image"]), name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert service["cap_drop"] == ["ALL"]
        if service["restart"] != "no":
            assert service["healthcheck"]["test"][0] == "CMD", name
            assert service["mem_limit"]
        for other, how in service.get("depends_on", {}).items():
            assert ("healthcheck" in services[other]) == (how["condition"] == "service_healthy")
            assert set(services[other]["networks"]) & set(service["networks"])
    assert not services["postgres"].get("ports")
    assert not services["s3"].get("ports")


def test_the_tracking_server_gets_all_that_it_asks_for(services):
    """A name that differs by a letter shows at the first start only."""
    import start_server

    given = services["mlflow"]["environment"]
    assert set(start_server.REQUIRED) <= set(given)
    hosts = given["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    called = [service["environment"].get("MLFLOW_TRACKING_URI") for service in services.values()]
    assert {uri.removeprefix("http://") for uri in called if uri} <= set(hosts)
    command = start_server.command(given)
    assert not any("given-" in word for word in command), "a secret stands in an argument"
    assert command[command.index("--app-name") + 1] == "basic-auth"


def test_the_server_refuses_to_start_without_a_value(project):
    """Started half, it would answer without passwords."""
    done = subprocess.run(
        [sys.executable, str(project / "mlflow/start_server.py")],
        env={"POSTGRES_HOST": "postgres", "POSTGRES_PASSWORD": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "POSTGRES_PASSWORD, POSTGRES_DB" in done.stderr
    assert "POSTGRES_HOST" not in done.stderr


def test_a_password_of_any_signs_reaches_the_database(tmp_path):
    """Percent signs mean something to addresses and to settings files."""
    import start_server
    from sqlalchemy.engine import make_url

    password = "a%40b @/:?#[]%%ä"
    values = dict.fromkeys(start_server.REQUIRED, "x") | {"POSTGRES_PASSWORD": password}
    settings = configparser.ConfigParser()
    settings.read_string(start_server.auth_settings(start_server.database_uri(values)))
    assert make_url(settings["mlflow"]["database_uri"]).password == password
    assert settings["mlflow"]["default_permission"] == "READ"


def test_a_bucket_is_made_once():
    """Every start of the stack makes it; the second must not fail, and none may wait for ever."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import EndpointConnectionError
    from make_bucket import make
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    store = boto3.client(
        "s3",
        endpoint_url=f"http://{host}:{port}",
        aws_access_key_id="key",
        aws_secret_access_key="secret",
        region_name="us-east-1",
        config=Config(retries={"max_attempts": 1}),
    )
    assert [make(store, "exemplar"), make(store, "exemplar")] == [True, False]
    server.stop()
    with pytest.raises(EndpointConnectionError):
        make(store, "exemplar", wait_s=0)


def test_users_are_pairs_of_a_name_and_a_password():
    """A user made with an empty password would be anybody."""
    from make_users import users

    given = {"EXEMPLAR_USER_A": "pipeline", "EXEMPLAR_PASSWORD_A": "secret", "HOME": "/"}
    assert users(given) == {"pipeline": "secret"}
    with pytest.raises(ValueError, match="EXEMPLAR_USER_A needs"):
        users({"EXEMPLAR_USER_A": "pipeline"})
    with pytest.raises(ValueError, match="No user"):
        users({})
