"""``GET /ready``: whether the default model can answer, and the state of every model."""

import math
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from phi3_serve.api.adapters import offered_adapters
from phi3_serve.api.service import Service
from phi3_serve.config.model import ModelConfig
from phi3_serve.core.variant_state import VariantState


def readiness_router(service: Service) -> APIRouter:
    """The route over ``service``."""
    router = APIRouter()

    @router.head("/ready", include_in_schema=False)
    @router.get("/ready", responses={503: {"description": "The default model cannot answer yet"}})
    async def ready() -> Response:
        """Show whether the default model can answer, and the state of every model. The call starts no model.

        A model that is ready has an `engine`: its device, dtype, quantization and kernels, how its checkpoint stores
        the weights, the tokens that its key-value cache holds, and the bytes of cache and weights.
        `cuda_graphs` says whether a GPU replays steps. `flash_attention` has the chunks of prompts whose attention
        torch computes there. `replaced_kernels` has the kernels that slower ones replace, and the reasons. `adapters`
        has those that requests may name, and `merged_adapters` those that apply to every request, each with its
        strength.
        """
        states = await service.backend.states()
        is_ready = states[service.config.default_model_name].state == "ready"
        models = {name: _described(service.config_of(name), state) for name, state in states.items()}
        return JSONResponse({"ready": is_ready, "models": models}, 200 if is_ready else 503)

    return router


def _described(config: ModelConfig, state: VariantState) -> dict[str, Any]:
    """The state of a model without what it has not."""
    fields: dict[str, Any] = {"state": state.state}
    if state.detail:
        fields["detail"] = state.detail
    if state.num_tries:
        fields["tries"] = state.num_tries
    if state.next_try_s is not None:
        fields["next_try_s"] = math.ceil(state.next_try_s)
    if state.engine is not None:
        fields["engine"] = asdict(state.engine)
    if offered := offered_adapters(config, state):
        fields["adapters"] = {adapter.name: adapter.strength for adapter in offered}
    if config.merged_adapters:
        fields["merged_adapters"] = {adapter.name: adapter.strength for adapter in config.merged_adapters}
    return fields
