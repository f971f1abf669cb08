"""``python -m tests.serving.load_of ADDRESS MODEL``: what the engine of a running model has to do, as JSON."""

import json
import logging
import sys

import ray
from ray import serve

from phi3_serve.config.model_name import deployment_name

if __name__ == "__main__":
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.ERROR, namespace="serve")
    print(json.dumps(serve.get_deployment_handle(deployment_name(sys.argv[2]), "phi3").load.remote().result()))
