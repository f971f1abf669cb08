"""The deployment that receives HTTP."""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve._private.logging_utils import get_serve_logs_dir
from ray.serve.handle import DeploymentHandle

from phi3_serve.api.app import create_app
from phi3_serve.api.key_file import KeyFileError
from phi3_serve.api.keys import ApiKeys
from phi3_serve.api.limits import CurrentLimits
from phi3_serve.config.app import AppConfig
from phi3_serve.config.user_config import LiveIngressConfig
from phi3_serve.errors import ModelUnavailable
from phi3_serve.observability.metrics import RequestMetrics
from phi3_serve.observability.request_log import request_log
from phi3_serve.observability.request_record import Sink
from phi3_serve.observability.traces import traces_to
from phi3_serve.serving.backend import HandleBackend
from phi3_serve.serving.cluster import ClusterView
from phi3_serve.serving.live_settings import LiveSettings
from phi3_serve.serving.placement import Placement
from phi3_serve.serving.published_metrics import PublishedMetrics

logger = logging.getLogger("ray.serve")


class Ingress:
    """Runs the HTTP API over the replicas. Serve asks it for its ASGI app, so the app is never pickled."""

    def __init__(
        self, config: AppConfig, placements: Mapping[str, Placement], models: dict[str, DeploymentHandle[Any]]
    ) -> None:
        self._view = view = ClusterView(
            placements, app_name=serve.get_replica_context().app_name, elastic=config.cluster.elastic
        )
        for model, placement in placements.items():
            if note := placement.device_note([]):
                logger.warning("%s: %s", model, note)
        self._config = config
        self._limits = CurrentLimits(config.limits)
        self._live = LiveSettings(LiveIngressConfig)
        self._keys = ApiKeys(config.auth)
        self._backend = HandleBackend(models, placements, view, self._limits)
        self._metrics = RequestMetrics()
        published = PublishedMetrics(self._metrics.registry)
        self._publishing = asyncio.create_task(published.publish_forever(self._show_states))

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Build the app in the process that runs it."""
        return create_app(
            self._backend,
            self._config,
            limits=self._limits,
            keys=self._keys,
            metrics=self._metrics,
            sinks=self._sinks(),
            behind_ray=True,
        )

    def _sinks(self) -> list[Sink]:
        """What gets the records of requests: the log, and the traces."""
        name = serve.get_replica_context().replica_id.unique_id
        path = Path(get_serve_logs_dir()) / f"requests_{name}.log"
        sinks: list[Sink] = []
        if (log := request_log(self._config.logs.requests, path)) is not None:
            sinks.append(log)
        traces = self._config.traces
        if traces.endpoint is not None:
            sinks.append(traces_to(traces.endpoint, traces.sampled))
        return sinks

    async def _show_states(self) -> None:
        with suppress(ModelUnavailable):  # no reading of the cluster has succeeded yet
            self._metrics.show_states(await self._view.states())

    def reconfigure(self, user_config: Mapping[str, object]) -> None:
        """Replace limits and keys; requests in flight keep theirs. Serve calls this, also at the start."""
        live = self._live.read(user_config)
        self._limits.current = live.over(self._config.limits)
        try:
            self._keys.replace(self._config.auth if live.auth is None else live.auth)
        except KeyFileError as error:
            logger.error("%s; the API keys stay as they were", error.message)
