"""The schema of a RayService, taken from KubeRay's CRD: ``python -m tests.k8s.crd FILE > tests/k8s/rayservice-crd.yaml``.

FILE is helm-chart/kuberay-operator/crds/ray.io_rayservices.yaml of KubeRay 1.7 (github.com/ray-project/kuberay,
Apache-2.0). It has a megabyte, because it describes two versions of the API, the status, and the same pod template many
times. The copy keeps version v1 without the status, and writes equal parts once, as YAML aliases.
"""

import sys
from pathlib import Path
from typing import Any

import yaml

COPY = Path(__file__).with_name("rayservice-crd.yaml")
LENGTH_OF_AN_ALIAS = 60  # shorter parts are written out


def schema_of(crd: Any) -> Any:
    """The OpenAPI schema of version v1 without the status."""
    v1 = next(version for version in crd["spec"]["versions"] if version["name"] == "v1")
    schema = v1["schema"]["openAPIV3Schema"]
    del schema["properties"]["status"]
    return schema


def with_equal_parts_shared(schema: Any, seen: dict[str, Any]) -> Any:
    """``schema`` in which equal mappings are the same object; ``seen`` has those found so far."""
    if isinstance(schema, list):
        return [with_equal_parts_shared(item, seen) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: with_equal_parts_shared(value, seen) for key, value in schema.items()}
    text = repr(made)
    return made if len(text) < LENGTH_OF_AN_ALIAS else seen.setdefault(text, made)


def main(source: Path) -> None:
    """Print the copy of ``source``."""
    schema = with_equal_parts_shared(schema_of(yaml.load(source.read_text(), yaml.CSafeLoader)), {})
    print("# From KubeRay 1.7 (Apache-2.0). Made by `python -m tests.k8s.crd`, whose docstring names the source.")
    print(yaml.dump(schema, Dumper=yaml.CSafeDumper, width=1000, default_flow_style=None), end="")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
