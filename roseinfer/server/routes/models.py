"""`GET /v1/models`: the model that is served."""

from __future__ import annotations

from fastapi import APIRouter, Request

from roseinfer.server.dependencies import engine_of, start_time_of
from roseinfer.server.errors import ModelNotFoundError
from roseinfer.server.schemas.models import ModelListReply, ModelReply

router = APIRouter(tags=["OpenAI"])


@router.get("/v1/models")
async def list_models(request: Request) -> ModelListReply:
    """All models that there are, which is one."""
    return ModelListReply(object="list", data=[_model(request)])


@router.get("/v1/models/{model_id:path}")
async def get_model(model_id: str, request: Request) -> ModelReply:
    """One model by its name."""
    model = _model(request)
    if model_id != model.id:
        raise ModelNotFoundError(f"there is no model {model_id[:256]!r} here, this server has {model.id!r}")
    return model


def _model(request: Request) -> ModelReply:
    engine = engine_of(request)
    return ModelReply(
        id=engine.name,
        object="model",
        created=start_time_of(request),
        owned_by="roseinfer",
        max_model_len=engine.client.max_model_len,
    )
