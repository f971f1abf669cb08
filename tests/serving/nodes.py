"""A Ray cluster of several nodes in one machine: a head without GPU, and nodes with GPUs in name.

``python -m tests.serving.nodes CONFIG``: starts it, deploys the Serve config, prints ``up``, and then does what each
line of its input says: ``where`` prints which node has which replica, ``kill NODE`` ends one as a power cut would.
"""

import json
import sys
from pathlib import Path

import ray
import yaml
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve._private import api
from ray.serve.schema import ServeDeploySchema
from ray.util.state import list_actors

GROUP = "phi3-serve/group"  # a label of Ray


def main(config: Path) -> None:
    head = {"num_cpus": 3, "include_dashboard": True, "labels": {GROUP: "cpu"}}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    gpu_nodes = {name: cluster.add_node(num_cpus=8, num_gpus=3, labels={GROUP: "gpu"}) for name in ("one", "two")}
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, namespace="serve", log_to_driver=False)
    schema = ServeDeploySchema.model_validate(yaml.safe_load(config.read_text()))
    api.serve_start(http_options=schema.http_options.model_dump(), proxy_location=schema.proxy_location).deploy_apps(
        schema
    )
    names = {node.node_id: name for name, node in gpu_nodes.items()}
    print("up", flush=True)
    for line in sys.stdin:
        command, *words = line.split()
        if command == "kill":
            cluster.remove_node(gpu_nodes[words[0]], allow_graceful=False)
            print("done", flush=True)
        elif command == "where":
            found: dict[str, list[str]] = {name: [] for name in (*gpu_nodes, "head")}
            for actor in list_actors(limit=1000, detail=True):
                if actor.state == "ALIVE" and (name := actor.name or "").startswith("SERVE_REPLICA::phi3#"):
                    found[names.get(actor.node_id, "head")].append(name.split("#")[1])
            print(json.dumps({name: sorted(models) for name, models in found.items()}), flush=True)
    serve.shutdown()
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
