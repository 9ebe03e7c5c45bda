"""The Helm chart: what can be read without helm, and what helm makes of it where it is there."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from asterion_server.keys import open_provisioned
from asterion_shared import __version__

CHART = Path(__file__).parents[2] / "deploy/helm/asterion-coordinator"
TEMPLATES = sorted((CHART / "templates").iterdir())
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
HOST = {"hosts": ["fl.example.org"]}
POSTGRES = {
    "database": {
        "url": "postgresql+psycopg://asterion@db/asterion",
        "passwordSecret": {"name": "queue"},
        "to": [{"podSelector": {"matchLabels": {"app": "db"}}}],
    }
}
needs_helm = pytest.mark.skipif(shutil.which("helm") is None, reason="no helm")


def merged(values: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    both = {key: merged(values[key], other[key]) if isinstance(values[key], dict) else other[key]
            for key in values.keys() & other.keys()}  # fmt: skip
    return values | other | both


def helm(*words: object, **given: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["helm", *map(str, words), "--values", "-"],
        input=yaml.safe_dump(given), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def rendered(**given: Any) -> dict[tuple[str, str], dict[str, Any]]:
    done = helm("template", "fed", CHART, **(HOST | given))
    assert done.returncode == 0, done.stderr
    found = [one for one in yaml.safe_load_all(done.stdout) if one]
    return {(one["kind"], one["metadata"]["name"]): one for one in found}


def pod_of(found: dict[tuple[str, str], dict[str, Any]]) -> dict[str, Any]:
    return found["StatefulSet", "fed-asterion"]["spec"]["template"]["spec"]


def test_the_chart_is_of_this_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (chart["name"], chart["appVersion"]) == (CHART.name, __version__)


def test_every_value_of_the_templates_is_there_and_every_one_there_is_used() -> None:
    used = set()
    for path in TEMPLATES:
        text = path.read_text()
        assert text.count("{{") == text.count("}}")
        blocks = re.findall(r"{{-? *(?:if|with|range|define)\b", text)
        assert len(blocks) == len(re.findall(r"{{-? *end *-?}}", text)), path.name
        used |= set(re.findall(r"\.Values\.([A-Za-z.]+)", text))
    for name in used:
        value: Any = VALUES
        for key in name.split("."):
            assert key in value, name
            value = value[key]

    def leaves(values: dict[str, Any], before: str = "") -> set[str]:
        found = set()
        for key, value in values.items():
            name = f"{before}{key}"
            inner = isinstance(value, dict) and value and name not in used
            found |= leaves(value, f"{name}.") if inner else {name}
        return found

    assert leaves(VALUES) == used


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ({}, ""),
        (POSTGRES, ""),
        ({"hosts": []}, "hosts"),
        ({"hosts": ["a b"]}, "hosts"),
        ({"replicas": 2}, "replicas"),
        ({"database": {"url": POSTGRES["database"]["url"]}}, "name"),
        (merged(POSTGRES, {"database": {"url": "postgresql+psycopg://a:secret@db/x"}}), "url"),
        (merged(POSTGRES, {"database": {"url": "sqlite:///x"}}), "url"),
        ({"image": {"digest": "latest"}}, "digest"),
        ({"podDisruptionBudget": {"maxUnavailable": 2}}, "maxUnavailable"),
        ({"service": {"port": 443}}, "port"),
    ],
)
def test_wrong_values_are_refused(given: dict[str, Any], wrong: str) -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    values = merged(VALUES, HOST | given)
    problems = list(jsonschema.Draft7Validator(SCHEMA).iter_errors(values))
    assert bool(problems) == bool(wrong)
    assert all(wrong in f"{list(problem.path)} {problem.message}" for problem in problems)
    if shutil.which("helm"):
        done = helm("template", "fed", CHART, **(HOST | given))
        assert (done.returncode != 0) == bool(wrong), done.stderr


def test_the_page_says_what_was_tried() -> None:
    page = (CHART.parents[1] / "README.md").read_text()
    assert "`helm/asterion-coordinator`" in page
    assert "was not installed in a cluster" in page


@needs_helm
def test_helm_finds_nothing_to_say() -> None:
    done = helm("lint", "--strict", CHART, **(HOST | POSTGRES))
    assert done.returncode == 0, done.stdout
    assert "[WARNING]" not in done.stdout


@needs_helm
@pytest.mark.parametrize("given", [{}, POSTGRES], ids=["sqlite", "postgresql"])
def test_pods_are_restricted(given: dict[str, Any]) -> None:
    """As the Pod Security Standard "restricted" asks."""
    pod = pod_of(rendered(**given))
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"
    assert pod["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    for container in (*pod["initContainers"], *pod["containers"]):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }  # fmt: skip
        assert container["image"] == f"asterion-coordinator:{__version__}"
        assert "memory" in container["resources"]["limits"]
        assert "PASSWORD" not in json.dumps(container.get("args"))
    (main,) = pod["containers"]
    assert ("env" in main) == bool(given)
    assert all("secretKeyRef" in one["valueFrom"] for one in main.get("env", ()))


@needs_helm
def test_only_sites_and_those_named_get_through() -> None:
    policy = rendered()["NetworkPolicy", "fed-asterion"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["ingress"] == [{"ports": [{"protocol": "TCP", "port": "link"}]}]
    assert policy["egress"] == []
    peer = [{"ipBlock": {"cidr": "192.0.2.0/24"}}]
    found = rendered(networkPolicy={"sites": peer, "metrics": peer}, **POSTGRES)
    policy = found["NetworkPolicy", "fed-asterion"]["spec"]
    assert [rule["from"] for rule in policy["ingress"]] == [peer, peer]
    assert policy["egress"][0]["to"] == POSTGRES["database"]["to"]
    selector = found["StatefulSet", "fed-asterion"]["spec"]["selector"]["matchLabels"]
    assert policy["podSelector"]["matchLabels"] == selector
    labels = found["StatefulSet", "fed-asterion"]["spec"]["template"]["metadata"]["labels"]
    assert selector.items() <= labels.items()
    for name in ("fed-asterion", "fed-asterion-metrics"):
        service = found["Service", name]["spec"]
        assert service["selector"] == selector
        known = {port["name"] for port in pod_of(found)["containers"][0]["ports"]}
        assert {port["targetPort"] for port in service["ports"]} <= known
    assert found["PodDisruptionBudget", "fed-asterion"]["spec"]["maxUnavailable"] == 1
    assert found["StatefulSet", "fed-asterion"]["spec"]["replicas"] == 1


@needs_helm
def test_the_first_start_makes_the_folder_and_the_second_keeps_what_was_edited(
    tmp_path: Path,
) -> None:
    """The init container's own command, with the paths of this machine."""
    found = rendered(runsAtOnce=7, **POSTGRES)
    (init,) = pod_of(found)["initContainers"]
    settings = tmp_path / "coordinator.toml"
    settings.write_text(found["ConfigMap", "fed-asterion"]["data"]["coordinator.toml"])
    folder = tmp_path / "state/coordinator"
    script, *words = init["args"]
    script = script.replace("/etc/asterion/coordinator.toml", str(settings))
    script = script.replace("/var/lib/asterion/coordinator", str(folder))
    assert str(folder) in script
    assert pod_of(found)["containers"][0]["args"] == [
        "server", "start", "/var/lib/asterion/coordinator"
    ]  # fmt: skip
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    def start() -> None:
        subprocess.run(
            [*init["command"], script, *words], check=True, env=os.environ | {"PATH": path},
            capture_output=True,
        )  # fmt: skip

    start()
    made = open_provisioned(folder).settings
    assert (made.hosts, made.runs_at_once) == (("fl.example.org",), 7)
    assert made.database == POSTGRES["database"]["url"]
    assert (made.metrics_port, made.metrics_address) == (9464, "0.0.0.0")  # noqa: S104  # of its pod
    assert (folder / "server.key").stat().st_mode & 0o777 == 0o600
    key, edited = (folder / "ca.key").read_bytes(), folder / "coordinator.toml"
    edited.write_text(edited.read_text().replace("runs_at_once = 7", "runs_at_once = 2"))
    start()
    assert open_provisioned(folder).settings.runs_at_once == 2
    assert (folder / "ca.key").read_bytes() == key
