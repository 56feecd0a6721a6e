"""deploy/kubernetes: what Kubernetes and KubeRay would take, nothing open that need not be, no secret in it."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from interlace_state.config_file import load

ROOT = Path(__file__).parents[2] / "deploy" / "kubernetes"
SCHEMA = Path(__file__).parent / "schemas" / "raycluster.json"
VERSIONS = ("1.30", "1.37")
KUSTOMIZATION: dict[str, Any] = yaml.safe_load((ROOT / "kustomization.yaml").read_text())
RESOURCES: list[dict[str, Any]] = [
    resource for file in KUSTOMIZATION["resources"] for resource in yaml.safe_load_all((ROOT / file).read_text())
]


def named(resource: dict[str, Any]) -> str:
    return f"{resource['kind']} {resource['metadata']['name']}"


def the(name: str) -> dict[str, Any]:
    return next(resource for resource in RESOURCES if named(resource) == name)


def templates() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod template, by a name."""
    for resource in RESOURCES:
        spec = resource.get("spec", {})
        if resource["kind"] == "RayCluster":
            yield "ray head", spec["headGroupSpec"]["template"]
            for group in spec["workerGroupSpecs"]:
                yield f"ray {group['groupName']}", group["template"]
        elif "template" in spec:
            yield named(resource), spec["template"]


TEMPLATES = dict(templates())
SECRETS = {"interlace-redis": {"password", "url"}, "interlace-ray": {"auth_token"}}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("resource", [one for one in RESOURCES if one["kind"] != "RayCluster"], ids=named)
def test_kubernetes_would_take_it(resource: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(resource, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_it_would_take_each_pod(name: str, version: str) -> None:
    """Those of the RayCluster, too, whose schema leaves them out."""
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, "spec": TEMPLATES[name]["spec"]}
    kubernetes_validate.validate(pod, version, strict=True)


def test_kuberay_would_take_its_own() -> None:
    jsonschema.validate(the("RayCluster interlace"), json.loads(SCHEMA.read_text()))


@pytest.mark.parametrize(
    "broken",
    [{"workerGroupSpec": []}, {"authOptions": {"mode": "tokens"}}, {"headGroupSpec": {"rayStartParams": {}}}],
    ids=str,
)
def test_kuberay_s_schema_finds_mistakes(broken: dict[str, Any]) -> None:
    cluster = the("RayCluster interlace")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(cluster | {"spec": cluster["spec"] | broken}, json.loads(SCHEMA.read_text()))


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_pod_has_no_privilege_and_is_looked_after(name: str) -> None:
    """The standard `restricted`, which the namespace enforces, and a root file system that nobody writes to."""
    spec = TEMPLATES[name]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    for container in spec["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"readinessProbe", "livenessProbe", "resources"} <= set(container)
        assert "memory" in container["resources"]["limits"]
    label = the("Namespace interlace")["metadata"]["labels"]
    assert label == {"pod-security.kubernetes.io/enforce": "restricted"}


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_a_pod_mounts_is_there(name: str) -> None:
    spec = TEMPLATES[name]["spec"]
    claims = {resource["metadata"]["name"] for resource in RESOURCES if resource["kind"] == "PersistentVolumeClaim"}
    claims |= {claim["metadata"]["name"] for claim in the("StatefulSet redis")["spec"]["volumeClaimTemplates"]}
    volumes = {volume["name"] for volume in spec["volumes"]} | ({"data"} if "redis" in name else set())
    for container in spec["containers"]:
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    for volume in spec["volumes"]:
        if "persistentVolumeClaim" in volume:
            assert volume["persistentVolumeClaim"]["claimName"] in claims
        elif "configMap" in volume:
            assert volume["configMap"]["name"] in {made["name"] for made in KUSTOMIZATION["configMapGenerator"]}
        elif "secret" in volume:
            keys = {item["key"] for item in volume["secret"]["items"]}
            assert keys <= SECRETS[volume["secret"]["secretName"]]


def test_kustomize_puts_it_together() -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("no `kubectl` here: the schemas have to do")
    said = subprocess.run(["kubectl", "kustomize", ROOT], capture_output=True, text=True, timeout=60, check=False)
    assert said.returncode == 0, said.stderr
    made = {named(resource): resource for resource in yaml.safe_load_all(said.stdout)}
    assert set(made) == {named(resource) for resource in RESOURCES} | {"ConfigMap interlace"}
    assert made["ConfigMap interlace"]["data"]["interlace.yaml"] == (ROOT / "interlace.yaml").read_text()
    images = set(re.findall(r"image: (.*)", said.stdout))
    assert images == {"valkey/valkey:8.1-alpine"} | {
        f"{image['newName']}:{image['newTag']}" for image in KUSTOMIZATION["images"]
    }


def test_secrets_are_referred_to_and_the_page_makes_each() -> None:
    page = (ROOT / "README.md").read_text()
    made = {
        name: set(re.findall(r"--from-file=(\w+)=deploy/secrets/\w+", rest))
        for name, rest in re.findall(r"create secret generic ([\w-]+)((?:\\\n|.)*)", page)
    }
    assert made == SECRETS
    assert the("RayCluster interlace")["spec"]["authOptions"] == {"mode": "token", "secretName": "interlace-ray"}
    assert not [resource for resource in RESOURCES if resource["kind"] == "Secret"]


def test_only_the_gateway_is_reached_from_elsewhere() -> None:
    policies = {r["metadata"]["name"]: r["spec"] for r in RESOURCES if r["kind"] == "NetworkPolicy"}
    assert policies["nothing"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    open_to_all = [
        (name, rule) for name, spec in policies.items() for rule in spec.get("ingress", []) if not rule.get("from")
    ]
    assert open_to_all == [("gateway", {"ports": [{"protocol": "TCP", "port": 8000}]})]
    sources = [peer["podSelector"]["matchLabels"]["part"] for peer in policies["redis"]["ingress"][0]["from"]]
    assert sources == ["gateway", "workers"]
    parts = {template["metadata"]["labels"]["part"] for template in TEMPLATES.values()}
    assert parts == {"redis", "gateway", "workers"} == set(policies) - {"nothing", "names"}


def test_workers_reach_no_private_address_but_their_own_and_redis() -> None:
    outside = [
        block
        for rule in the("NetworkPolicy workers")["spec"]["egress"]
        for peer in rule["to"]
        if (block := peer.get("ipBlock"))
    ]
    assert [block["cidr"] for block in outside] == ["0.0.0.0/0"]
    assert {"10.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"} <= set(outside[0]["except"])


def test_redis_refuses_before_it_would_be_killed() -> None:
    [container] = TEMPLATES["StatefulSet redis"]["spec"]["containers"]
    found = re.search(r"--maxmemory (\d+)gb --maxmemory-policy noeviction", container["command"][-1])
    assert found is not None
    assert int(found[1]) < int(container["resources"]["limits"]["memory"].removesuffix("Gi"))


def test_a_gateway_stops_when_nothing_new_comes_and_not_before_its_streams_have_ended() -> None:
    spec = TEMPLATES["Deployment gateway"]["spec"]
    [container] = spec["containers"]
    [_, waits] = container["lifecycle"]["preStop"]["exec"]["command"]
    drains = load(ROOT / "interlace.yaml", {}).gateway.drain_seconds
    assert int(waits) + drains < spec["terminationGracePeriodSeconds"]
    budget = the("PodDisruptionBudget gateway")["spec"]
    assert budget["selector"] == the("Deployment gateway")["spec"]["selector"]
    assert budget["minAvailable"] < the("Deployment gateway")["spec"]["replicas"]


def test_its_configuration_loads(tmp_path: Path) -> None:
    (tmp_path / "url").write_text("redis://:geheim@redis:6379/0")
    config = load(ROOT / "interlace.yaml", {"INTERLACE_REDIS__URL__FILE": str(tmp_path / "url")})
    assert (config.runtime, config.ray.address, config.store.url) == ("ray", "auto", "/store")
    assert config.isolation_level == "required"


def test_ray_is_the_one_that_the_images_have() -> None:
    lock = (ROOT.parent / "images" / "requirements-workers.txt").read_text()
    assert f"\nray=={the('RayCluster interlace')['spec']['rayVersion']} " in lock


def test_the_images_are_named_once() -> None:
    named_in_pods = {container["image"] for one in TEMPLATES.values() for container in one["spec"]["containers"]}
    assert {image["name"] for image in KUSTOMIZATION["images"]} == named_in_pods - {"valkey/valkey:8.1-alpine"}
    for file in (*KUSTOMIZATION["configurations"], *KUSTOMIZATION["configMapGenerator"][0]["files"]):
        assert (ROOT / file).is_file()
