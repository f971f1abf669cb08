"""What k8s/ renders to."""

from typing import Any

import yaml

from tests.k8s.kustomize import render
from tests.k8s.rules import ROOT

K8S = ROOT / "k8s"
ONE_FILE = K8S / "rayservice.yaml"
OF_ONE_FILE = "overlays/single-gpu"
OVERLAYS = sorted(f"overlays/{path.name}" for path in (K8S / "overlays").iterdir())
COMPONENTS = sorted(f"components/{path.name}" for path in (K8S / "components").iterdir())
KUSTOMIZATIONS = ["base", *OVERLAYS, *COMPONENTS]
_HEADER = f"""\
# phi3-serve on KubeRay 1.5.1 or later, in one file: the RayService of k8s/{OF_ONE_FILE}.
#   kubectl apply -f k8s/rayservice.yaml
#   kubectl port-forward svc/phi3-serve-serve-svc 8000
# `make k8s` writes this file, and a test compares both. Put the name of your image into it, or make an overlay of your own:
# docs/kubernetes.md describes k8s/base and its overlays.
"""


def objects_of(name: str) -> list[dict[str, Any]]:
    """The objects of a kustomization; a component comes together with the base that it extends."""
    made = render(K8S / name)
    return [*render(K8S / "base"), *made] if name in COMPONENTS else made


def one_file() -> str:
    """The text of k8s/rayservice.yaml."""
    (service,) = [made for made in objects_of(OF_ONE_FILE) if made["kind"] == "RayService"]
    return _HEADER + yaml.dump(service, Dumper=_Dumper, sort_keys=False, width=120)


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as they are, and no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
