"""``make k8s``: render and check base, overlays and components, without a cluster; write k8s/rayservice.yaml."""

import sys

from tests.k8s.manifests import KUSTOMIZATIONS, ONE_FILE, objects_of, one_file
from tests.k8s.rules import problems


def main() -> int:
    """Print one line for each kustomization and problem; the exit status."""
    found = []
    for name in KUSTOMIZATIONS:
        objects = objects_of(name)
        ours = [f"{name}: {problem}" for problem in problems(objects)]
        print(f"k8s/{name}: {', '.join(one['kind'] for one in objects)}: {'wrong' if ours else 'ok'}")
        found += ours
    print(*found, sep="\n", end="\n" if found else "")
    if not found:
        ONE_FILE.write_text(one_file())
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
