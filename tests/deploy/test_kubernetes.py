"""The Kubernetes manifests: valid, hardened, and fitting the gateway."""

from __future__ import annotations

import json
import re
import signal
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from aether_trio.config import Settings, load_settings
from aether_trio.services.tokens.keys import new_key_text
from tests.cli.shell import AETHER, LIMIT_S, Shell, aether
from tests.config.test_loading import SERVICE_VARIABLES
from tests.helpers.gateway import start_gateway
from tests.security.certificates import Authority

FILES = sorted((Path(__file__).parents[2] / "deploy" / "kubernetes").glob("*.yaml"))
MARGIN_S = 10


@pytest.fixture(params=FILES, ids=lambda file: file.name)
def documents(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = list(yaml.safe_load_all(request.param.read_text()))
    return found


def of_kind(documents: list[dict[str, Any]], *kinds: str) -> dict[str, Any]:
    [found] = [one for one in documents if one["kind"] in kinds]
    return found


def pod(documents: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = of_kind(documents, "Deployment", "StatefulSet")["spec"]["template"]["spec"]
    return found


def container(documents: list[dict[str, Any]]) -> dict[str, Any]:
    [found] = pod(documents)["containers"]
    return dict(found)


def settings_text(documents: list[dict[str, Any]]) -> str:
    text: str = of_kind(documents, "ConfigMap")["data"]["aether.yaml"]
    return text


def settings_of(documents: list[dict[str, Any]], tmp_path: Path) -> Settings:
    (tmp_path / "aether.yaml").write_text(settings_text(documents))
    return load_settings(tmp_path / "aether.yaml")


def test_there_are_manifests() -> None:
    assert [file.name for file in FILES] == ["cluster.yaml", "single.yaml"]


def test_the_schemas_of_kubernetes_take_them(documents: list[dict[str, Any]]) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate").validate
    for document in documents:
        validate(document, "1.37", strict=True)


def test_a_pod_is_hardened(documents: list[dict[str, Any]]) -> None:
    of_pod, of_container = pod(documents)["securityContext"], container(documents)["securityContext"]
    assert of_pod["runAsNonRoot"] is True
    assert of_pod["runAsUser"] > 0
    assert of_pod["seccompProfile"] == {"type": "RuntimeDefault"}
    # A change of all modes at each start would open the files of the volume to the group.
    assert of_pod["fsGroupChangePolicy"] == "OnRootMismatch"
    assert of_container == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod(documents)["automountServiceAccountToken"] is False
    assert pod(documents)["enableServiceLinks"] is False
    secrets = [one["secret"] for one in pod(documents)["volumes"] if "secret" in one]
    assert secrets
    assert all(one["defaultMode"] == 0o400 for one in secrets)
    # No secret lies in the settings or the environment.
    assert not {"database", "api_keys", "tail_token"} & set(re.findall(r"\w+", settings_text(documents)))
    assert all("valueFrom" in one for one in container(documents).get("env", []))


def test_probes_and_drain_fit_the_gateway(documents: list[dict[str, Any]], tmp_path: Path) -> None:
    settings = settings_of(documents, tmp_path)
    one = container(documents)
    ports = {port["name"]: port["containerPort"] for port in one["ports"]}
    assert ports == {"aether": settings.gateway.port, "ops": settings.ops.port}
    assert settings.ops.host == "0.0.0.0"
    paths = {name: one[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")}
    assert {name: probe["path"] for name, probe in paths.items()} == {
        "startup": "/healthz",
        "readiness": "/readyz",
        "liveness": "/healthz",
    }
    assert {probe["port"] for probe in paths.values()} == {"ops"}
    pause_s = float(one["lifecycle"]["preStop"]["exec"]["command"][1])
    needed_s = pause_s + settings.grpc.drain_deadline_s + MARGIN_S
    assert pod(documents)["terminationGracePeriodSeconds"] >= needed_s


def test_one_service_and_a_budget_select_the_pods(documents: list[dict[str, Any]], tmp_path: Path) -> None:
    owner = of_kind(documents, "Deployment", "StatefulSet")["spec"]
    labels = owner["template"]["metadata"]["labels"]
    service = of_kind(documents, "Service")["spec"]
    budget = of_kind(documents, "PodDisruptionBudget")["spec"]
    assert service["selector"] == owner["selector"]["matchLabels"] == budget["selector"]["matchLabels"] == labels
    assert [port["port"] for port in service["ports"]] == [settings_of(documents, tmp_path).gateway.port]
    assert budget["maxUnavailable"] == 1
    if of_kind(documents, "Deployment", "StatefulSet")["kind"] == "StatefulSet":
        assert owner["replicas"] == 1
    else:
        assert owner["replicas"] > 2
        assert owner["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
        [url] = [one for one in container(documents)["env"] if one["name"] == "AETHER_STORAGE__DATABASE"]
        assert "secretKeyRef" in url["valueFrom"]


def test_only_the_gateways_port_is_open_to_all(documents: list[dict[str, Any]]) -> None:
    policy = of_kind(documents, "NetworkPolicy")["spec"]
    owner = of_kind(documents, "Deployment", "StatefulSet")["spec"]
    assert policy["podSelector"] == owner["selector"]
    assert policy["policyTypes"] == ["Ingress"]
    open_to_all, of_prometheus = policy["ingress"]
    assert ("from" in open_to_all, [one["port"] for one in open_to_all["ports"]]) == (False, ["aether"])
    assert (len(of_prometheus["from"]), [one["port"] for one in of_prometheus["ports"]]) == (1, ["ops"])


def mounted(documents: list[dict[str, Any]], path: str) -> dict[str, Any]:
    """The volume on which a path lies."""
    mounts = [one for one in container(documents)["volumeMounts"] if path.startswith(one["mountPath"])]
    name = max(mounts, key=lambda one: len(one["mountPath"]))["name"]
    claims = of_kind(documents, "Deployment", "StatefulSet")["spec"].get("volumeClaimTemplates", [])
    volumes = [*pod(documents)["volumes"], *({"name": one["metadata"]["name"], "claim": one} for one in claims)]
    [found] = [one for one in volumes if one["name"] == name]
    return dict(found)


def test_each_file_has_a_volume(documents: list[dict[str, Any]], tmp_path: Path) -> None:
    settings = settings_of(documents, tmp_path)
    assert settings.tls.cert is not None
    assert mounted(documents, settings.tls.cert)["secret"]["secretName"] == "aether-tls"
    assert mounted(documents, settings.auth.token_hmac_keys[0].file)["secret"]["secretName"] == "aether-keys"
    assert mounted(documents, "/etc/aether/aether.yaml")["configMap"]["name"] == "aether"
    assert {"claim", "emptyDir"} & set(mounted(documents, "/var/lib/aether"))


@pytest.fixture
def in_a_pod(documents: list[dict[str, Any]], tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """Settings with files of this test, and the variables of a Service."""
    authority = Authority(tmp_path)
    key = tmp_path / "token-hmac.key"
    key.write_text(new_key_text(b"x" * 32))
    key.chmod(0o400)
    text = settings_text(documents)
    for path, file in (
        ("/etc/aether/tls/tls.crt", authority.tls["cert"]),
        ("/etc/aether/tls/tls.key", authority.tls["key"]),
        ("/etc/aether/keys/token-hmac.key", str(key)),
    ):
        assert path in text
        text = text.replace(path, file)
    (tmp_path / "aether.yaml").write_text(text)
    return tmp_path / "aether.yaml", SERVICE_VARIABLES


def test_a_gateway_starts_with_these_settings_answers_its_probes_and_drains(
    documents: list[dict[str, Any]], in_a_pod: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    config, variables = in_a_pod
    command = [*AETHER, container(documents)["args"][0], "--config", str(config)]
    extra = ["--set", "gateway.host=127.0.0.1", "--set", "ops.host=127.0.0.1"]
    with start_gateway(data_dir=tmp_path / "data", command=command, extra_args=extra, env=variables) as gateway:
        for probe in ("startup", "readiness", "liveness"):
            path = container(documents)[f"{probe}Probe"]["httpGet"]["path"]
            with urllib.request.urlopen(f"http://{gateway.ops_address}{path}", timeout=LIMIT_S) as answer:
                assert answer.status == 200
        gateway.terminate()
        assert gateway.wait() == 0
        lines = [json.loads(line) for line in gateway.output().splitlines()]
        assert sum("Kubernetes" in line["event"] for line in lines) == 1
        assert signal.SIGTERM.name in " ".join(line["event"] for line in lines)


def test_the_administrator_of_aether_init_is_one_with_these_settings(
    documents: list[dict[str, Any]], tmp_path: Path
) -> None:
    """As the head of each file says: the keys and the token come from `aether init`."""
    made = tmp_path / "made"
    assert aether("init", "--dir", str(made), "--data-dir", str(tmp_path / "data")).returncode == 0
    text = settings_text(documents)
    for path, file in (
        ("/etc/aether/tls/tls.crt", "server.pem"),
        ("/etc/aether/tls/tls.key", "secrets/server.key"),
        ("/etc/aether/keys/token-hmac.key", "secrets/token-hmac.key"),
    ):
        text = text.replace(path, str(made / file))
    (tmp_path / "aether.yaml").write_text(text)
    command = [*AETHER, container(documents)["args"][0], "--config", str(tmp_path / "aether.yaml")]
    extra = ["--set", "gateway.host=127.0.0.1", "--set", "ops.host=127.0.0.1"]
    with start_gateway(data_dir=tmp_path / "data", command=command, extra_args=extra) as gateway:
        key = (made / "secrets" / "admin.token").read_text().strip()
        shell = Shell(gateway, AETHER_API_KEY=key, AETHER_TLS_CA_CERT=str(made / "ca.pem"))
        assert "administrator" in shell.out("tokens", "list")


def test_a_key_of_the_settings_makes_the_first_administrator_of_one_gateway(tmp_path: Path) -> None:
    """As the head of single.yaml says."""
    documents = list(yaml.safe_load_all(FILES[1].read_text()))
    made = tmp_path / "made"
    assert aether("init", "--dir", str(made)).returncode == 0
    settings = yaml.safe_load(settings_text(documents))
    settings["tls"] = {"cert": str(made / "server.pem"), "key": str(made / "secrets" / "server.key")}
    settings["auth"]["token_hmac_keys"][0]["file"] = str(made / "secrets" / "token-hmac.key")
    key = json.loads(aether("keys", "new", "--principal", "user", "--identity", "admin", "--json").stdout)
    settings["auth"]["api_keys"] = [key["record"]]
    (tmp_path / "aether.yaml").write_text(yaml.safe_dump(settings))
    command = [*AETHER, container(documents)["args"][0], "--config", str(tmp_path / "aether.yaml")]
    extra = ["--set", "gateway.host=127.0.0.1", "--set", "ops.host=127.0.0.1"]
    with start_gateway(data_dir=tmp_path / "data", command=command, extra_args=extra) as gateway:
        trusted = {"AETHER_TLS_CA_CERT": str(made / "ca.pem")}
        first = Shell(gateway, AETHER_API_KEY=key["key"], **trusted)
        create = ("tokens", "create", "me", "--principal-type", "user", "--principal-id", "admin", "--json")
        token = json.loads(first.out(*create))["secret"]
        assert "me" in Shell(gateway, AETHER_API_KEY=token, **trusted).out("tokens", "list")
