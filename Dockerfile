# The image of every pod of k8s/rayservice.yaml: head, ingress and GPU workers share it.
#   docker build -t phi3-serve:0.1.0 .
FROM python:3.11-slim

# wget: KubeRay's probes call it
RUN apt-get update && apt-get install -y --no-install-recommends wget && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 1000 ray && install -d -o ray -g ray /app /weights
WORKDIR /app

COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY phi3_serve/ phi3_serve/
# g++ compiles phi3_serve/engine/kernels/cpu.cpp and is not needed afterwards
RUN apt-get update && apt-get install -y --no-install-recommends g++ libc6-dev \
    && pip install --no-cache-dir -c constraints.txt . \
    && apt-get purge -y --auto-remove g++ libc6-dev && rm -rf /var/lib/apt/lists/*
COPY serve_config.yaml ./

USER ray
ENV HF_HOME=/weights RAY_USAGE_STATS_ENABLED=0 PYTHONUNBUFFERED=1
# what `phi3-serve up` sets by itself and KubeRay does not; phi3_serve/launch/proxy.py says why
ENV RAY_SERVE_ENABLE_HA_PROXY=1 \
    RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S=0.5 \
    RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD=0 \
    RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP=0 \
    RAY_SERVE_USE_GRPC_BY_DEFAULT=1 \
    RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH=2147483647 \
    RAY_worker_niceness=0 \
    RAY_SERVE_HAPROXY_BINARY_PATH=/usr/local/bin/phi3-serve-haproxy \
    RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER=500ms \
    RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S=5 \
    RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S=600
# At the end of a pod, `ray start` waits this long for the requests in flight: longer than limits.request_timeout_s, and
# shorter than terminationGracePeriodSeconds. Ray's default is 30 s.
ENV RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=615
EXPOSE 8000
CMD ["phi3-serve", "up", "serve_config.yaml"]
