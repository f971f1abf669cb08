# The image of every pod of k8s/rayservice.yaml: head, ingress and GPU workers share it.
#   docker build -t phi3-serve:0.1.0 .
FROM python:3.11-slim

# wget: KubeRay's probes call it. g++: compiles phi3_serve/engine/kernels.cpp
RUN apt-get update && apt-get install -y --no-install-recommends wget g++ && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 1000 ray && install -d -o ray -g ray /app /weights
WORKDIR /app

COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY phi3_serve/ phi3_serve/
RUN pip install --no-cache-dir -c constraints.txt .
COPY serve_config.yaml ./

USER ray
ENV HF_HOME=/weights RAY_USAGE_STATS_ENABLED=0 PYTHONUNBUFFERED=1
EXPOSE 8000
CMD ["phi3-serve", "up", "serve_config.yaml"]
