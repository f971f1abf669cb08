"""``GET /ready``: whether the default model can answer, and the state of every model."""

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from phi3_serve.api.service import Service


def readiness_router(service: Service) -> APIRouter:
    """The route over ``service``."""
    router = APIRouter()

    @router.get("/ready", responses={503: {"description": "The default model cannot answer yet"}})
    async def ready() -> Response:
        """Show whether the default model can answer, and the state of every model. The call starts no model."""
        states = await service.backend.states()
        is_ready = states[service.config.default_model_name].state == "ready"
        models = {name: {"state": s.state, **({"detail": s.detail} if s.detail else {})} for name, s in states.items()}
        return JSONResponse({"ready": is_ready, "models": models}, 200 if is_ready else 503)

    return router
