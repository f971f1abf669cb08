"""What must be true of the objects of one overlay together, beyond their schemas.

The rules of KubeRay's operator are those of its validation.go and pod.go in ray-operator/controllers/ray.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from phi3_serve import __version__
from phi3_serve.catalogue import VARIANTS
from phi3_serve.config.app import AppConfig
from phi3_serve.launch.config_file import ConfigError, parse
from phi3_serve.observability.metrics import RequestMetrics
from phi3_serve.serving.placement import Placement, label_as_resource, place
from tests.k8s.environment import unknown
from tests.k8s.schemas import schema_problems

ROOT = Path(__file__).parents[2]
Object = Mapping[str, Any]
PARTS = re.compile(r"phi3-serve:" + re.escape(__version__) + r"(-cpu)?")
# Secrets that a site makes; docs/kubernetes.md says how.
SECRETS_OF_A_SITE = {"hugging-face", "redis", "phi3-serve-tls", "phi3-serve-keys"}
OPERATOR_MAX_NAME = 41  # characters of a RayService's name
PORTS = {"serve": 8000, "metrics": 8080}
SERVICE_OF_KUBERAY = ("phi3-serve-serve-svc", 8000)


def problems(objects: Sequence[Object]) -> list[str]:
    """One line for each problem of the objects; none if the overlay can be applied."""
    found = [f"{_name(one)}: {problem}" for one in objects for problem in schema_problems(one)]
    if found:  # the rules below rely on the schemas, and on configs that can be read
        return found
    if found := list(_serve_configs(objects)):
        return found
    rules: list[Callable[[Sequence[Object]], Iterator[str]]] = [
        _ray_services,
        _environment,
        _images,
        _references,
        _selectors,
        _budgets,
        _security,
        _backends,
        _ends_of_pods,
        _scaled_objects,
    ]
    return [problem for rule in rules for problem in rule(objects)]


def _name(one: Object) -> str:
    return f"{one['kind']} {one['metadata']['name']}"


def pod_templates(objects: Sequence[Object]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The template of each kind of pod, with a name for messages."""
    for one in objects:
        if one["kind"] == "RayService":
            yield from ((f"{_name(one)}, {name}", group["template"]) for name, group in groups(one).items())
        elif one["kind"] in ("Deployment", "Job"):
            yield _name(one), one["spec"]["template"]


def groups(service: Object) -> dict[str, Mapping[str, Any]]:
    """The head and the worker groups of a RayService by name."""
    cluster = service["spec"]["rayClusterConfig"]
    return {"head": cluster["headGroupSpec"]} | {one["groupName"]: one for one in cluster.get("workerGroupSpecs", [])}


def _containers(objects: Sequence[Object]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, template in pod_templates(objects):
        for one in [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]:
            yield f"{name}, container {one['name']}", one


def configs(objects: Sequence[Object]) -> Iterator[tuple[str, str]]:
    """The Serve configs of the overlay, with a name for messages."""
    for one in objects:
        if one["kind"] == "RayService":
            yield f"{_name(one)}, serveConfigV2", one["spec"]["serveConfigV2"]
        elif one["kind"] == "ConfigMap" and "serve_config.yaml" in one["data"]:
            yield f"{_name(one)}, serve_config.yaml", one["data"]["serve_config.yaml"]


def _serve_configs(objects: Sequence[Object]) -> Iterator[str]:
    for where, text in configs(objects):
        try:
            content = parse(text).content
        except ConfigError as error:
            yield from (f"{where}: {line}" for line in error.message.splitlines())
            continue
        for deployment in content["applications"][0].get("deployments", []):
            if "ray_actor_options" in deployment:
                yield f"{where}: ray_actor_options of {deployment['name']} replace num_gpus; write it in args.models"


def _ray_services(objects: Sequence[Object]) -> Iterator[str]:
    for one in objects:
        if one["kind"] == "RayService":
            yield from (f"{_name(one)}: {problem}" for problem in _of_ray_service(one))


def _of_ray_service(service: Object) -> Iterator[str]:
    cluster = service["spec"]["rayClusterConfig"]
    if len(service["metadata"]["name"]) > OPERATOR_MAX_NAME:
        yield f"metadata.name: has more than {OPERATOR_MAX_NAME} characters"
    ray = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    if ray is None or cluster["rayVersion"] != ray[1]:
        yield f"rayVersion: is {cluster['rayVersion']}, and constraints.txt has another one"
    if cluster.get("authOptions", {}).get("mode") != "token":
        yield "authOptions.mode: must be token; Ray's ports can run code"
    if groups(service)["head"]["rayStartParams"].get("num-cpus") != "0":
        yield "headGroupSpec.rayStartParams.num-cpus: must be 0, so that no model is beside the control plane"
    for name, group in groups(service).items():
        yield from (f"group {name}: {problem}" for problem in _of_group(name, group))
    if "upgradeStrategy" in service["spec"] and not cluster.get("enableInTreeAutoscaling"):
        yield "upgradeStrategy: an incremental upgrade needs enableInTreeAutoscaling"
    yield from _room_for_models(service)


def _of_group(name: str, group: Mapping[str, Any]) -> Iterator[str]:
    container = group["template"]["spec"]["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
    for port, number in PORTS.items():
        if ports.get(port) != number:
            yield f"its container must have the port {port}, {number}"
    requests, limits = (container["resources"][key] for key in ("requests", "limits"))
    if requests["memory"] != limits["memory"]:
        yield "its container requests another amount of memory than its limit"
    for kind in (requests, limits):
        if "ephemeral-storage" not in kind:
            yield "its container needs a request and a limit of ephemeral-storage"
    store, shared = int(group["rayStartParams"].get("object-store-memory", 0)), _shared_memory(group)
    if not 0 < store <= shared:
        yield f"rayStartParams.object-store-memory: is {store} bytes, and /dev/shm has {shared}"
    if name != "head" and not group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]:
        yield "replicas: must be from minReplicas to maxReplicas"


def _shared_memory(group: Mapping[str, Any]) -> int:
    spec = group["template"]["spec"]
    mounted = {m["name"] for m in spec["containers"][0].get("volumeMounts", []) if m["mountPath"] == "/dev/shm"}
    volumes = [v["emptyDir"] for v in spec.get("volumes", []) if v["name"] in mounted and "emptyDir" in v]
    return sum(_bytes(v["sizeLimit"]) for v in volumes if v.get("medium") == "Memory")


def _bytes(quantity: str) -> int:
    found = re.fullmatch(r"(\d+)(Mi|Gi)", quantity)
    assert found is not None, quantity
    return int(found[1]) * {"Mi": 2**20, "Gi": 2**30}[found[2]]


def _room_for_models(service: Object) -> Iterator[str]:
    """Each model and the ingress have a group whose pods can hold a replica, as ``serving.placement`` reserves it."""
    app = parse(service["spec"]["serveConfigV2"]).app
    totals = [_resources(group) for group in groups(service).values()]
    for model in app.models:
        placement = place(model, cluster_has_gpu=False, elastic=app.cluster.elastic)
        if placement.device == "cuda" and not placement.num_gpus:
            yield f"model {model.name}: is for a GPU and reserves none (num_gpus)"
        elif missing := placement.missing_resource(totals):
            yield f"model {model.name}: needs {missing.replace('node of the cluster', 'group')}"
    ingress = Placement("cpu", app.http.num_cpus, 0, None, label_selector=app.http.label_selector)
    if missing := ingress.missing_resource(totals):
        yield f"ingress: needs {missing.replace('node of the cluster', 'group')}"
    if _may_be_absent(service) and not app.cluster.elastic:
        yield "args.cluster.elastic: must be true, because a group has minReplicas 0"


def _may_be_absent(service: Object) -> bool:
    return any(group.get("minReplicas") == 0 for group in groups(service).values())


def _resources(group: Mapping[str, Any]) -> dict[str, float]:
    """What Ray counts on a pod of ``group``: limits of its container, or what rayStartParams say instead."""
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    cores = group["rayStartParams"].get("num-cpus", limits["cpu"])
    labels = {label_as_resource(key, value): 1.0 for key, value in group.get("labels", {}).items()}
    return {"CPU": _cores(cores), "GPU": float(limits.get("nvidia.com/gpu", 0)), **labels}


def _cores(quantity: str) -> float:
    return float(quantity.removesuffix("m")) / 1000 if quantity.endswith("m") else float(quantity)


def _environment(objects: Sequence[Object]) -> Iterator[str]:
    for where, container in _containers(objects):
        yield from (f"{where}: {text}" for one in container.get("env", []) if (text := unknown(one["name"])))


def _images(objects: Sequence[Object]) -> Iterator[str]:
    for where, container in _containers(objects):
        if not PARTS.fullmatch(container["image"]):
            yield f"{where}: image {container['image']} must be phi3-serve:{__version__}, or that with -cpu"
        gpus = container.get("resources", {}).get("limits", {}).get("nvidia.com/gpu")
        if gpus is not None and container["image"].endswith("-cpu"):
            yield f"{where}: has a GPU, and its image has no CUDA"


def _references(objects: Sequence[Object]) -> Iterator[str]:
    """Claims and ConfigMaps are among the objects; Secrets are among those that a site makes."""
    there = {(one["kind"], one["metadata"]["name"]) for one in objects} | {("ConfigMap", "kube-root-ca.crt")}
    wanted = [(w, *reference) for w, t in pod_templates(objects) for reference in _volumes_of(t["spec"])]
    yield from (f"{where}: there is no {kind} {name}" for where, kind, name in wanted if (kind, name) not in there)
    for where, container in _containers(objects):
        for variable in container.get("env", []):
            secret = variable.get("valueFrom", {}).get("secretKeyRef", {}).get("name")
            if secret is not None and secret not in SECRETS_OF_A_SITE:
                yield f"{where}: docs/kubernetes.md does not name the Secret {secret}"
        names = {volume["name"] for _, t in pod_templates(objects) for volume in t["spec"].get("volumes", [])}
        for mount in container.get("volumeMounts", []):
            if mount["name"] not in names:
                yield f"{where}: there is no volume {mount['name']}"


def _volumes_of(spec: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for volume in spec.get("volumes", []):
        if claim := volume.get("persistentVolumeClaim"):
            yield "PersistentVolumeClaim", claim["claimName"]
        if config := volume.get("configMap"):
            yield "ConfigMap", config["name"]
        if (secret := volume.get("secret")) and secret["secretName"] not in SECRETS_OF_A_SITE:
            yield "Secret", secret["secretName"]


def _selectors(objects: Sequence[Object]) -> Iterator[str]:
    """Each selector finds a pod of the overlay."""
    labels = [template["metadata"]["labels"] for _, template in pod_templates(objects)]
    for one in objects:
        spec = one.get("spec", {})
        if one["kind"] == "Service":
            selector = spec["selector"]
        elif one["kind"] in ("PodDisruptionBudget", "PodMonitor", "Deployment"):
            selector = spec["selector"]["matchLabels"]
        elif one["kind"] == "NetworkPolicy":
            selector = spec["podSelector"]["matchLabels"]
        else:
            continue
        if not any(selector.items() <= of_pod.items() for of_pod in labels):
            yield f"{_name(one)}: selects no pod of this overlay: {selector}"


def _budgets(objects: Sequence[Object]) -> Iterator[str]:
    """A node can be drained. KubeRay's issue 2662: a RayCluster has no scale subresource, which other budgets need."""
    pods = [group for one in objects if one["kind"] == "RayService" for group in groups(one).values()]
    for budget in objects:
        if budget["kind"] != "PodDisruptionBudget":
            continue
        selector = budget["spec"]["selector"]["matchLabels"].items()
        selected = [group for group in pods if selector <= group["template"]["metadata"]["labels"].items()]
        fewest = sum(group.get("minReplicas", 1) for group in selected)  # the head is one pod
        minimum = budget["spec"].get("minAvailable")
        if selected and not (isinstance(minimum, int) and minimum < fewest):
            yield f"{_name(budget)}: spec.minAvailable must be a number of pods below {fewest}, and is {minimum}"


def _security(objects: Sequence[Object]) -> Iterator[str]:
    for name, template in pod_templates(objects):
        spec = template["spec"]
        if spec.get("securityContext", {}).get("runAsNonRoot") is not True:
            yield f"{name}: securityContext.runAsNonRoot must be true"
        if spec.get("automountServiceAccountToken") is not False:
            yield f"{name}: automountServiceAccountToken must be false"
    for where, container in _containers(objects):
        context = container.get("securityContext", {})
        if context.get("allowPrivilegeEscalation") is not False or context.get("capabilities") != {"drop": ["ALL"]}:
            yield f"{where}: must not have privileges"


def _backends(objects: Sequence[Object]) -> Iterator[str]:
    """Routes lead to the port ``serve`` of KubeRay's Service."""
    for one in objects:
        if one["kind"] == "HTTPRoute":
            found = [(b["name"], b["port"]) for rule in one["spec"]["rules"] for b in rule["backendRefs"]]
        elif one["kind"] == "Ingress":
            paths = [path for rule in one["spec"]["rules"] for path in rule["http"]["paths"]]
            services = [path["backend"]["service"] for path in paths]
            found = [(service["name"], service["port"]["number"]) for service in services]
        else:
            continue
        if set(found) != {SERVICE_OF_KUBERAY}:
            yield f"{_name(one)}: must lead to {SERVICE_OF_KUBERAY}, and leads to {found}"


def _ends_of_pods(objects: Sequence[Object]) -> Iterator[str]:
    """A request may take ``limits.request_timeout_s``; whatever ends must wait longer, each thing than the one inside."""
    longest = max((parse(text).app.limits.request_timeout_s for _, text in configs(objects)), default=0.0)
    for name, template in pod_templates(objects):
        if name.startswith("Job "):
            continue
        if template["spec"].get("terminationGracePeriodSeconds", 30) <= drain_timeout_s():
            yield f"{name}: terminationGracePeriodSeconds must be above {drain_timeout_s():g}"
    for one in objects:
        if one["kind"] == "RayService" and one["spec"].get("rayClusterDeletionDelaySeconds", 60) <= longest:
            yield f"{_name(one)}: rayClusterDeletionDelaySeconds must be above {longest:g}"
        if one["kind"] == "HTTPRoute" and any(
            float(seconds.removesuffix("s")) <= longest
            for rule in one["spec"]["rules"]
            for seconds in rule["timeouts"].values()
        ):
            yield f"{_name(one)}: its timeouts must be above {longest:g} s"
    if not longest < drain_timeout_s():
        yield f"Dockerfile: RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S must be above {longest:g}"


def _scaled_objects(objects: Sequence[Object]) -> Iterator[str]:
    """KEDA scales a Deployment of the overlay that has no number of its own, by metrics that GET /metrics has."""
    deployments = {one["metadata"]["name"]: one for one in objects if one["kind"] == "Deployment"}
    published = published_names()
    for one in objects:
        if one["kind"] != "ScaledObject":
            continue
        spec = one["spec"]
        target = deployments.get(spec["scaleTargetRef"]["name"])
        if target is None:
            yield f"{_name(one)}: there is no Deployment {spec['scaleTargetRef']['name']}"
        elif "replicas" in target["spec"]:
            yield f"{_name(one)}: each apply would reset spec.replicas of its Deployment"
        if not spec["minReplicaCount"] <= spec["maxReplicaCount"]:
            yield f"{_name(one)}: minReplicaCount must be at most maxReplicaCount"
        for trigger in spec["triggers"]:
            names = set(re.findall(r"\bphi3_serve_\w+", trigger["metadata"]["query"]))
            if unknown_names := sorted(names - published):
                yield f"{_name(one)}: GET /metrics has no {unknown_names[0]}"
            if not names:
                yield f"{_name(one)}: trigger {trigger['name']} asks for no metric of phi3-serve"


def published_names() -> set[str]:
    """The names of all samples that an ingress publishes."""
    families = RequestMetrics().registry.collect()
    return {f"{family.name}_total" if family.type == "counter" else family.name for family in families}


def drain_timeout_s() -> float:
    """How long ``ray start`` waits for requests in flight, as the image sets it."""
    (found,) = re.findall(r"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=(\d+)", (ROOT / "Dockerfile").read_text())
    return float(found)


def names_of_models(config: str) -> set[str]:
    """The served names in a Serve config."""
    app: AppConfig = parse(config).app
    return {model.served_name for model in app.models}


CATALOGUE = {variant.name for variant in VARIANTS}
