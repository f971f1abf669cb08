"""The HTTP half: every route, over a backend that it knows only by ``core.Backend``."""

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.middleware.cors import CORSMiddleware

from phi3_serve import __version__
from phi3_serve.api.error_handlers import install_error_handlers
from phi3_serve.api.kaito.host_metrics import host_metrics
from phi3_serve.api.kaito.routes import chat_router
from phi3_serve.api.kaito.schema import HealthStatus, MessageResponse
from phi3_serve.api.limits import CurrentLimits
from phi3_serve.api.middleware.admission import AdmissionMiddleware
from phi3_serve.api.middleware.authentication import AuthenticationMiddleware
from phi3_serve.api.middleware.body_limit import BodyLimitMiddleware
from phi3_serve.api.openai.routes import openai_router
from phi3_serve.api.reference import as_page, reference
from phi3_serve.api.service import Service
from phi3_serve.config import AppConfig
from phi3_serve.core import Backend
from phi3_serve.errors import EngineFailure
from phi3_serve.observability.metrics import CONTENT_TYPE, asks_for_prometheus
from phi3_serve.web.page import chat_page


def create_app(
    backend: Backend, config: AppConfig, *, limits: CurrentLimits | None = None, behind_ray: bool = False
) -> FastAPI:
    """The ASGI app.

    ``limits``: in place of the config's, for whoever changes them later. ``behind_ray``: Serve's proxy stands before
    the app and names the answers.
    """
    limits = limits or CurrentLimits(config.limits)
    app = FastAPI(
        title="phi3-serve",
        description="Microsoft's Phi-3 models behind KAITO's POST /chat and OpenAI's API.",
        version=__version__,
        docs_url=None,  # FastAPI's page loads its scripts from elsewhere
        redoc_url=None,
    )
    app.add_middleware(BodyLimitMiddleware, limits=limits)
    app.add_middleware(AdmissionMiddleware, capacity=lambda: backend.capacity())
    app.add_middleware(AuthenticationMiddleware, key_hashes=config.auth.key_hashes, names_answers=not behind_ray)
    if config.http.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=config.http.cors_origins, allow_methods=["*"], allow_headers=["*"]
        )
    install_error_handlers(app)
    service = Service(backend, config, limits)
    app.include_router(chat_router(service))
    app.include_router(openai_router(service))

    @app.get("/")
    async def home() -> MessageResponse:
        """Tell that the server runs."""
        return MessageResponse()

    @app.get("/health", responses={500: {"description": "The default model could not be started"}})
    async def health() -> HealthStatus:
        """Tell whether the server lives; a model that is loading does not make it unhealthy."""
        state = (await backend.states())[config.default_model_name]
        if state.state == "failed":
            raise EngineFailure(f"Model {config.default_model_name} could not be started. {state.detail}")
        return HealthStatus()

    @app.get("/ready", responses={503: {"description": "The default model cannot answer yet"}})
    async def ready() -> Response:
        """Tell whether the default model answers, and how every model stands. Asking wakes none."""
        states = await backend.states()
        is_ready = states[config.default_model_name].state == "ready"
        models = {name: {"state": s.state, **({"detail": s.detail} if s.detail else {})} for name, s in states.items()}
        return JSONResponse({"ready": is_ready, "models": models}, 200 if is_ready else 503)

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    async def docs() -> str:
        """Show what every endpoint takes."""
        return as_page(reference(app.openapi()))

    @app.get("/ui", response_class=HTMLResponse, include_in_schema=False)
    async def ui() -> Response:
        """Give the chat page."""
        page = chat_page()
        return HTMLResponse(page.html, headers={"Content-Security-Policy": page.policy, "Cache-Control": "no-cache"})

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        """The hardware, as KAITO gave it: the GPUs of running models, or the CPU. Counters for Prometheus' Accept."""
        if asks_for_prometheus(request.headers.get("accept", "")):
            return Response(service.measurements.exposition(), media_type=CONTENT_TYPE)
        return JSONResponse(host_metrics(await backend.host_info()))

    return app
