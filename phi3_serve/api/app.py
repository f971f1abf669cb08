"""The HTTP application: all middleware and all routes, over a backend that it knows only as ``core.Backend``."""

from collections.abc import Sequence

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from phi3_serve import __version__
from phi3_serve.api.anthropic.routes import anthropic_router
from phi3_serve.api.batches.batch_routes import batches_router
from phi3_serve.api.batches.file_routes import files_router
from phi3_serve.api.batches.service import BatchService
from phi3_serve.api.error_handlers import install_error_handlers
from phi3_serve.api.headers import READABLE_BY_PAGES
from phi3_serve.api.kaito.routes import kaito_router
from phi3_serve.api.keys import ApiKeys
from phi3_serve.api.limits import CurrentLimits
from phi3_serve.api.middleware.admission import AdmissionMiddleware
from phi3_serve.api.middleware.authentication import AuthenticationMiddleware
from phi3_serve.api.middleware.body_limit import BodyLimitMiddleware
from phi3_serve.api.middleware.headers import HeadersMiddleware
from phi3_serve.api.middleware.path import PathMiddleware
from phi3_serve.api.middleware.rate_limit import RateLimitMiddleware
from phi3_serve.api.middleware.record import RecordMiddleware
from phi3_serve.api.ollama.routes import ollama_router
from phi3_serve.api.openai.routes import openai_router
from phi3_serve.api.openapi_document import install_openapi_document
from phi3_serve.api.pages import pages_router
from phi3_serve.api.readiness import readiness_router
from phi3_serve.api.responses.routes import responses_router
from phi3_serve.api.service import Service
from phi3_serve.api.tokenization.routes import tokenization_router
from phi3_serve.config.app import AppConfig
from phi3_serve.core.backend_protocol import Backend
from phi3_serve.observability.metrics import RequestMetrics
from phi3_serve.observability.request_record import Sink


def create_app(
    backend: Backend,
    config: AppConfig,
    *,
    limits: CurrentLimits | None = None,
    keys: ApiKeys | None = None,
    metrics: RequestMetrics | None = None,
    sinks: Sequence[Sink] = (),
    behind_ray: bool = False,
) -> FastAPI:
    """The ASGI application.

    ``limits`` and ``keys`` replace those of ``config``; the caller may change them while the server runs. ``metrics``
    count the requests. ``sinks`` get a record of each POST at its end.
    ``behind_ray``: Ray Serve's proxy receives the requests and adds the request id to each response.
    """
    limits, keys = limits or CurrentLimits(config.limits), keys or ApiKeys(config.auth)
    metrics = metrics or RequestMetrics()
    service, batches = Service(backend, config, limits, metrics), BatchService(config.batches)
    app = FastAPI(
        lifespan=lambda _: batches.running(service, keys, batch_app(service, sinks)),
        title="phi3-serve",
        description="Microsoft's Phi-3 models behind KAITO's POST /chat and OpenAI's API.",
        version=__version__,
        middleware=[
            # outermost first: a request passes them from top to bottom, its response from bottom to top
            *_cors(config.http.cors_origins),
            Middleware(PathMiddleware),
            Middleware(HeadersMiddleware, adds_request_id=not behind_ray),
            Middleware(RecordMiddleware, sinks=sinks),
            Middleware(AuthenticationMiddleware, keys=keys),
            Middleware(RateLimitMiddleware, on_refusal=metrics.count_refusal_of_key),
            Middleware(AdmissionMiddleware, capacity=lambda: backend.capacity(), on_refusal=metrics.count_refusal),
            Middleware(BodyLimitMiddleware, limits=limits, max_bytes_at=batches.max_bytes_at),
        ],
        docs_url=None,  # FastAPI's pages load scripts from other hosts
        redoc_url=None,
    )
    install_error_handlers(app)
    install_openapi_document(app)
    app.include_router(ollama_router(service))  # /api/chat, /api/generate, /api/tags, ...; before /{model}/chat
    app.include_router(kaito_router(service))  # /chat, /{model}/chat, /, /health, /metrics
    app.include_router(openai_router(service))  # /v1/models, /v1/chat/completions, /v1/completions
    app.include_router(responses_router(service))  # /v1/responses, /v1/responses/input_tokens
    app.include_router(files_router(batches))  # /v1/files
    app.include_router(batches_router(batches))  # /v1/batches
    app.include_router(anthropic_router(service))  # /v1/messages, /v1/messages/count_tokens
    app.include_router(tokenization_router(service))  # /tokenize, /detokenize, /apply-template
    app.include_router(readiness_router(service))  # /ready
    app.include_router(pages_router())  # /docs, /ui
    return app


def batch_app(service: Service, sinks: Sequence[Sink]) -> FastAPI:
    """What answers the requests of batches: the same routes.

    The worker has checked the key, and takes a share of the capacity instead of a place in it.
    """
    app = FastAPI(
        middleware=[
            Middleware(HeadersMiddleware, adds_request_id=True),
            Middleware(RecordMiddleware, sinks=sinks, source="batch"),
            Middleware(BodyLimitMiddleware, limits=service.limits),
        ],
        openapi_url=None,
    )
    install_error_handlers(app)
    app.include_router(openai_router(service))
    app.include_router(responses_router(service))
    return app


def _cors(origins: Sequence[str]) -> list[Middleware]:
    """Permission for the pages of other web origins, if the config names any."""
    if not origins:
        return []
    permission = Middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=READABLE_BY_PAGES,
    )
    return [permission]
