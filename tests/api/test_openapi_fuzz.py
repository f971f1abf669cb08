"""schemathesis over the OpenAPI document: data that it allows and data that it forbids, and never a 5xx.

``FUZZ_EXAMPLES=10000 pytest tests/api/test_openapi_fuzz.py``, which is ``make fuzz-http``, goes on for longer.
"""

import os
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from phi3_serve.api.app import create_app
from phi3_serve.config import AppConfig
from tests.support import LocalBackend

# Divided among the operations of the document.
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "400"))

schema = schemathesis.openapi.from_dict(create_app(Mock(), AppConfig()).openapi())
OPERATIONS = len(list(schema.get_all_operations()))


@pytest.fixture(scope="module")
def fuzzed_url(
    backend: LocalBackend,
    config: AppConfig,
    serve_app: Callable[[FastAPI], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    # An answer as long as the context, drawn by 64 beams, is a fair wish; here half a second of it will do.
    limits = {"request_timeout_s": 0.5, "max_body_bytes": 100_000}
    batches = {"directory": str(tmp_path_factory.mktemp("batches"))}
    changed = {**config.model_dump(), "limits": limits, "batches": batches}
    return serve_app(create_app(backend, AppConfig.model_validate(changed)))


@schema.parametrize()
@settings(
    max_examples=max(10, EXAMPLES // OPERATIONS),
    deadline=None,
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    suppress_health_check=list(HealthCheck),
    database=None,
)
@pytest.mark.slow
def test_no_request_breaks_the_server(case: Any, fuzzed_url: str) -> None:
    response = case.call(base_url=fuzzed_url)
    case.validate_response(
        response,
        checks=[not_a_server_error, status_code_conformance, response_schema_conformance, content_type_conformance],
    )
