"""Claims about what `kubectl kustomize` makes of the overlays, read as a cluster would read it."""

import base64
import re
import shutil
import subprocess

import pytest
import yaml

KUBERNETES = ("1.31", "1.37")  # the oldest and the newest that the manifests are checked against
OVERLAYS = ("local", "production")
TEMPLATES = {"Deployment", "StatefulSet", "Job"}


def kustomize():
    if shutil.which("kubectl"):
        return ["kubectl", "kustomize"]
    return ["kustomize", "build"] if shutil.which("kustomize") else None


pytestmark = pytest.mark.skipif(kustomize() is None, reason="neither kubectl nor kustomize is here")


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(project, request):
    """Every object of an overlay."""
    folder = project / "infra/kubernetes/overlays" / request.param
    done = subprocess.run([*kustomize(), str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, f"kustomize warns: {done.stderr}"
    return [item for item in yaml.safe_load_all(done.stdout) if item]


def pods(objects):
    """The pod templates, each with its object."""
    for item in objects:
        if item["kind"] in TEMPLATES:
            yield item, item["spec"]["template"]


def containers(template):
    spec = template["spec"]
    return [*spec.get("initContainers", []), *spec["containers"]]


def named(objects, kind):
    return {
        (item["metadata"].get("namespace"), item["metadata"]["name"]): item
        for item in objects
        if item["kind"] == kind
    }


def decoded(value):
    return base64.b64decode(value).decode()


def selects(selector, labels):
    for rule in selector.get("matchExpressions", ()):
        assert rule["operator"] == "In"
        if labels.get(rule["key"]) not in rule["values"]:
            return False
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


@pytest.mark.parametrize("version", KUBERNETES)
def test_every_object_fits_the_schemas_of_kubernetes(overlay, version):
    """A misspelt field is dropped by one cluster without a word, and refused by another."""
    schemas = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate")
    for item in overlay:
        schemas.validate(item, version, strict=True)
    broken = next(item for item in overlay if item["kind"] == "Service") | {"spce": {}}
    with pytest.raises(schemas.ValidationError):
        schemas.validate(broken, version, strict=True)


def test_no_object_comes_twice_or_without_its_namespace(overlay):
    """Without one it lands in whatever namespace the terminal was left in."""
    seen = [
        (item["kind"], item["metadata"].get("namespace"), item["metadata"]["name"])
        for item in overlay
    ]
    assert len(set(seen)) == len(seen)
    everywhere = {"Namespace", "ClusterRole", "ClusterRoleBinding"}
    assert {namespace for kind, namespace, _ in seen if kind not in everywhere} == {
        "exemplar",
        "kubeflow",
    }


@pytest.fixture(scope="module")
def secrets(project, tmp_path_factory):
    """What secrets.sh prints for a filled template: the keys of each secret."""
    if shutil.which("kubectl") is None:
        pytest.skip("secrets.sh needs kubectl")
    filled = tmp_path_factory.mktemp("env") / ".env"
    template = (project / "infra/.env.example").read_text()
    filled.write_text(re.sub(r"^(\w+)=$", r"\1=a%b$(c)'d-\1", template, flags=re.MULTILINE))
    script = str(project / "infra/kubernetes/secrets.sh")
    done = subprocess.run(
        [script, "--env-file", str(filled)], capture_output=True, text=True, check=True
    )
    objects = list(yaml.safe_load_all(done.stdout))
    return {name: item["data"] for name, item in named(objects, "Secret").items()}


def test_whatever_a_pod_names_is_there(overlay, secrets):
    """A name that leads nowhere leaves a pod in CreateContainerConfigError for ever."""
    maps, claims = named(overlay, "ConfigMap"), named(overlay, "PersistentVolumeClaim")
    for item, template in pods(overlay):
        space = item["metadata"]["namespace"]
        own = {claim["metadata"]["name"] for claim in item["spec"].get("volumeClaimTemplates", [])}
        volumes = own | {volume["name"] for volume in template["spec"].get("volumes", [])}
        for volume in template["spec"].get("volumes", []):
            if claim := volume.get("persistentVolumeClaim"):
                assert (space, claim["claimName"]) in claims
        for container in containers(template):
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            ports = {port["name"] for port in container.get("ports", [])}
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                if get := container.get(probe, {}).get("httpGet"):
                    assert get["port"] in ports
            for source in container.get("envFrom", []):
                if told := source.get("configMapRef"):
                    assert (space, told["name"]) in maps
                if told := source.get("secretRef"):
                    assert (space, told["name"]) in secrets
            for variable in container.get("env", []):
                if told := variable.get("valueFrom", {}).get("secretKeyRef"):
                    assert told["key"] in secrets[space, told["name"]]
    for binding in named(overlay, "RoleBinding").values():
        space = binding["metadata"]["namespace"]
        assert (space, binding["roleRef"]["name"]) in named(overlay, "Role")
        accounts = named(overlay, "ServiceAccount")
        assert all((space, subject["name"]) in accounts for subject in binding["subjects"])
    for binding in named(overlay, "ClusterRoleBinding").values():
        assert (None, binding["roleRef"]["name"]) in named(overlay, "ClusterRole")
        found = {(subject["namespace"], subject["name"]) for subject in binding["subjects"]}
        assert found <= set(named(overlay, "ServiceAccount"))


def test_services_policies_and_budgets_select_pods_that_exist(overlay):
    """A selector that fits nothing is valid, and protects or serves nothing."""
    labelled = [
        (item["metadata"]["namespace"], template["metadata"]["labels"], template)
        for item, template in pods(overlay)
    ]

    def chosen(item, selector):
        space = item["metadata"]["namespace"]
        return [
            template
            for at, labels, template in labelled
            if at == space and selects(selector, labels)
        ]

    for service in named(overlay, "Service").values():
        backends = chosen(service, {"matchLabels": service["spec"]["selector"]})
        assert backends
        for port in service["spec"]["ports"]:
            names = {p["name"] for c in containers(backends[0]) for p in c.get("ports", [])}
            assert port["targetPort"] in names
    for kind, field in (("PodDisruptionBudget", "selector"), ("NetworkPolicy", "podSelector")):
        for item in named(overlay, kind).values():
            assert chosen(item, item["spec"][field]), item["metadata"]["name"]
    workloads = named(overlay, "Deployment")
    for scaler in named(overlay, "HorizontalPodAutoscaler").values():
        target = scaler["metadata"]["namespace"], scaler["spec"]["scaleTargetRef"]["name"]
        assert "replicas" not in workloads[target]["spec"], "every apply would undo the scaler"
        limits = workloads[target]["spec"]["template"]["spec"]["containers"][0]["resources"]
        assert "cpu" in limits["requests"], "the scaler divides by it"


def test_every_container_is_pinned_bounded_and_without_rights(overlay):
    """The namespace enforces the restricted profile: a pod short of it is never started."""
    for item, template in pods(overlay):
        spec = template["spec"]
        assert spec["automountServiceAccountToken"] is False, item["metadata"]["name"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in containers(template):
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False
            assert own["readOnlyRootFilesystem"] is True
            assert own["capabilities"] == {"drop": ["ALL"]}
            assert re.search(r":\d+(\.\d+)+[\w.-]*$", container["image"]), container["image"]
            assert container["resources"]["limits"]["memory"]
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}


def test_the_tracking_server_is_given_all_that_it_asks_for(overlay, secrets):
    """It stops where a value is missing, and answers 403 to a name that it does not know."""
    import start_server

    maps = named(overlay, "ConfigMap")
    [mlflow] = [t for i, t in pods(overlay) if i["metadata"]["name"] == "mlflow"]
    given = {}
    for source in mlflow["spec"]["containers"][0]["envFrom"]:
        if "configMapRef" in source:
            given |= maps["exemplar", source["configMapRef"]["name"]]["data"]
        else:
            given |= secrets["exemplar", source["secretRef"]["name"]]
    assert set(start_server.REQUIRED) <= set(given)
    assert mlflow["spec"]["enableServiceLinks"] is False  # else MLFLOW_PORT is tcp://...
    hosts = set(given["MLFLOW_SERVER_ALLOWED_HOSTS"].split(","))
    called = {item["data"].get("MLFLOW_TRACKING_URI") for item in maps.values()} - {None}
    called.add(decoded(secrets["kubeflow", "exemplar-mlflow"]["MLFLOW_TRACKING_URI"]))
    assert len(called) == 2
    assert {uri.removeprefix("http://") for uri in called} <= hosts
    for ingress in named(overlay, "Ingress").values():
        for rule in ingress["spec"]["rules"]:
            service = rule["http"]["paths"][0]["backend"]["service"]["name"]
            if service == "mlflow":
                assert rule["host"] in hosts
                assert f"https://{rule['host']}" == given["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"]


def reaches(objects, source, target, port):
    """Whether policies let a pod (namespace, labels) reach another; as Kubernetes adds them up."""

    def peers(item, rule, other):
        if not rule:
            return True
        for peer in rule:
            space, selector = peer.get("namespaceSelector"), peer.get("podSelector", {})
            at_home = item["metadata"]["namespace"] == other[0]
            names = {"kubernetes.io/metadata.name": other[0]}
            near = at_home if space is None else selects(space, names)
            if "ipBlock" not in peer and near and selects(selector, other[1]):
                return True
        return False

    def open_for(pod, other, direction, who):
        policies = [
            item
            for item in named(objects, "NetworkPolicy").values()
            if item["metadata"]["namespace"] == pod[0]
            and selects(item["spec"]["podSelector"], pod[1])
            and direction in item["spec"]["policyTypes"]
        ]
        return not policies or any(
            peers(item, rule.get(who), other) and port in {p["port"] for p in rule["ports"]}
            for item in policies
            for rule in item["spec"].get(direction.lower(), [])
        )

    return open_for(source, target, "Egress", "to") and open_for(target, source, "Ingress", "from")


def test_the_network_lets_through_what_is_needed_and_no_more(overlay):
    """Steps that cannot log fail at the end of a run; a database open to all is read by all."""

    def pod(name, space="exemplar"):
        return space, {"app.kubernetes.io/name": name}

    mlflow, serve = pod("mlflow"), pod("exemplar-serve")
    step, stranger = pod("step", "kubeflow"), pod("stranger", "elsewhere")
    assert reaches(overlay, step, mlflow, 5000)
    assert reaches(overlay, serve, mlflow, 5000)
    assert reaches(overlay, pod("mlflow-users"), mlflow, 5000)
    assert reaches(overlay, stranger, serve, 8080)
    assert not reaches(overlay, stranger, mlflow, 5000)
    assert not reaches(overlay, pod("stranger"), mlflow, 5000)
    assert not reaches(overlay, serve, stranger, 443)
    if ("exemplar", "postgres") in named(overlay, "Service"):
        for store, port in (("postgres", 5432), ("s3", 8333)):
            assert reaches(overlay, mlflow, pod(store), port)
            assert not reaches(overlay, serve, pod(store), port)
            assert not reaches(overlay, step, pod(store), port)
        assert not reaches(overlay, mlflow, pod("s3"), 8888)


def test_runs_share_one_account_and_one_cache_by_the_agreed_names(overlay, secrets, project):
    """Compiled pipelines name them; another name here leaves every pod of a run pending."""
    assert ("kubeflow", "exemplar-pipeline") in named(overlay, "ServiceAccount")
    assert ("kubeflow", "exemplar-cache") in named(overlay, "PersistentVolumeClaim")
    settings = yaml.safe_load((project / "infra/kubernetes/profile.yaml").read_text())
    assert settings["cache"]["claim"] == "exemplar-cache"
    for name, keys in settings["secrets"].items():
        assert secrets["kubeflow", name].keys() <= set(keys), "a key that no pod is given"
    assert {name for space, name in secrets if space == "kubeflow"} == {
        "exemplar-mlflow",
        "exemplar-s3",
        "exemplar-lm",
    }
    for rule in next(iter(named(overlay, "Role").values()))["rules"]:
        assert "*" not in [*rule["verbs"], *rule["resources"], *rule["apiGroups"]]
        assert "secrets" not in rule["resources"] or rule["resourceNames"]


def amount(text):
    """A quantity of Kubernetes as a number."""
    number, unit = re.fullmatch(r"([\d.]+)(\w*)", str(text)).groups()
    return float(number) * {"": 1, "m": 1e-3, "Mi": 2**-10, "Gi": 1.0}[unit]  # memory in GiB


def test_the_guide_names_the_secrets_and_the_sizes_that_there_are(overlay, secrets, project):
    """An engineer plans nodes, and sets up a secrets operator, by these two tables."""
    guide = (project / "docs/operations.md").read_text()
    rows = re.findall(r"^\| (exemplar|kubeflow) \| `([\w-]+)` \| (.*) \|$", guide, re.MULTILINE)
    told = {(space, name): set(re.findall(r"[A-Z][A-Z_]{7,}", keys)) for space, name, keys in rows}
    assert told == {name: set(keys) for name, keys in secrets.items()}

    scalers = named(overlay, "HorizontalPodAutoscaler")
    sums = {"cpu": 0.0, "memory": 0.0, "limit": 0.0}
    for item, template in pods(overlay):
        if item["kind"] != "Job":
            name = item["metadata"]["namespace"], item["metadata"]["name"]
            count = item["spec"].get("replicas", 1)
            count = scalers[name]["spec"]["minReplicas"] if name in scalers else count
            for container in template["spec"]["containers"]:
                asked, most = container["resources"]["requests"], container["resources"]["limits"]
                sums["cpu"] += count * amount(asked["cpu"])
                sums["memory"] += count * amount(asked["memory"])
                sums["limit"] += count * amount(most["memory"])
    row = "| {cpu:.1f} | {memory:g} GiB | {limit:g} GiB |".format(**sums)
    assert row in guide, f"expected: {row}"


def test_secrets_hold_the_values_sign_by_sign_and_are_never_half_made(project, secrets):
    """A shell that reads a password as code changes it, or runs it."""
    value = secrets["exemplar", "exemplar-mlflow-server"]["POSTGRES_PASSWORD"]
    assert decoded(value) == "a%b$(c)'d-POSTGRES_PASSWORD"
    template = str(project / "infra/.env.example")
    script = str(project / "infra/kubernetes/secrets.sh")
    done = subprocess.run([script, "--env-file", template], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "MLFLOW_FLASK_SERVER_SECRET_KEY" in done.stderr


def test_no_manifest_holds_a_secret(overlay):
    """What lies in Git is read by everyone who can read the repository."""
    assert not named(overlay, "Secret")
    for _, template in pods(overlay):
        for container in containers(template):
            for variable in container.get("env", []):
                assert not re.search(r"PASSWORD|SECRET|KEY", variable["name"]) or (
                    "valueFrom" in variable
                )
