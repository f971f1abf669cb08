# Two images from one file: every pod of k8s/ and `docker run` use them. docs/images.md describes both.
#   docker build -t phi3-serve:0.1.0 .                    with CUDA 13.0, for NVIDIA's driver 580 or later; runs on a CPU, too
#   docker build -t phi3-serve:0.1.0-cpu --target cpu .   without CUDA
#   docker run --init=false -p 8000:8000 --stop-timeout 630 phi3-serve:0.1.0-cpu
FROM python:3.11-slim AS wheel
# g++ compiles phi3_serve/engine/kernels/csrc/, once for each level of instructions
RUN apt-get update && apt-get install -y --no-install-recommends g++ libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY pyproject.toml setup.py README.md LICENSE ./
COPY phi3_serve/ phi3_serve/
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .
# Without a compiler the kernels would be left out in silence.
RUN python -m zipfile -l /wheels/*.whl | grep -q engine/kernels/_cpu_any
RUN python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
    > /requirements.txt

FROM python:3.11-slim AS base
# tini: process 1, which passes signals on and reaps the processes that Ray leaves. wget: HEALTHCHECK and KubeRay's probes
RUN apt-get update && apt-get install -y --no-install-recommends tini wget && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 1000 ray && install -d -o ray -g ray /weights
WORKDIR /home/ray
COPY serve_config.yaml /etc/phi3-serve/
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
# PHI3_SERVE_URL: for another port. A model that loads or has failed is no reason to end the server; /ready tells of it.
HEALTHCHECK --interval=30s --timeout=10s --start-period=5m --retries=3 \
    CMD wget -q -O /dev/null "${PHI3_SERVE_URL:-http://127.0.0.1:8000}/health"
ENTRYPOINT ["tini", "--"]
CMD ["phi3-serve", "up", "/etc/phi3-serve/serve_config.yaml", "--host", "0.0.0.0"]

FROM base AS cpu
# PIP_EXTRA_INDEX_URL=... in --build-arg: an index with torch's wheels for CPUs; without it this image has CUDA, too
ARG PIP_EXTRA_INDEX_URL
COPY constraints.txt /tmp/
COPY --from=wheel /requirements.txt /tmp/
RUN pip install --no-cache-dir -c /tmp/constraints.txt -r /tmp/requirements.txt
COPY --from=wheel /wheels/ /tmp/wheels/
RUN pip install --no-cache-dir --no-deps /tmp/wheels/*.whl && pip check
USER ray

FROM base AS cuda
# Triton compiles a stub in C for each kernel when it runs first
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY constraints.txt constraints-cuda.txt /tmp/
COPY --from=wheel /requirements.txt /tmp/
# constraints-cuda.txt replaces the rows of constraints.txt with the same names
RUN cut -d= -f1 /tmp/constraints-cuda.txt | grep -v '^#' | sed 's/$/==/' > /tmp/replaced \
    && grep -v -F -f /tmp/replaced /tmp/constraints.txt > /tmp/all.txt && cat /tmp/constraints-cuda.txt >> /tmp/all.txt \
    && pip install --no-cache-dir -c /tmp/all.txt -r /tmp/requirements.txt
COPY --from=wheel /wheels/ /tmp/wheels/
RUN pip install --no-cache-dir --no-deps /tmp/wheels/*.whl && pip check
USER ray
