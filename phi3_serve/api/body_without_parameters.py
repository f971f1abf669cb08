"""The bodies of endpoints that generate nothing."""

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from phi3_serve.api.refused_fields import refuse_all_but


class BodyWithoutParameters(BaseModel):
    """A body whose fields are those of its schema. Generate parameters have no meaning in it and are refused."""

    model_config = ConfigDict(use_attribute_docstrings=True, extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _refuse_others(cls, body: Any) -> Any:
        if isinstance(body, dict):
            refuse_all_but(body, cls.model_fields)
        return body
