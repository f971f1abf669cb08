"""schemathesis over the OpenAPI document: data that it allows and data that it forbids, and never a 5xx.

``make fuzz-http`` is the long form. It also sends schemathesis's systematic examples: every bound of every field. Only it
loads schemathesis's plugin for pytest, which makes those examples when tests are collected, for half a minute.
"""

import os
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.schemas import APIOperation, BaseSchema
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from phi3_serve.api.app import create_app
from phi3_serve.config.app import AppConfig
from tests.support import LocalBackend

CHECKS = [not_a_server_error, status_code_conformance, response_schema_conformance, content_type_conformance]
EXAMPLES = 8  # of each operation, once of allowed and once of forbidden data
SHARES = 4  # of the operations, so that processes of a run divide them
IS_LONG = "FUZZ_EXAMPLES" in os.environ


def make_schema() -> BaseSchema:
    """The document of the server."""
    return schemathesis.openapi.from_dict(create_app(Mock(), AppConfig()).openapi())


@pytest.fixture(scope="module")
def operations() -> list[APIOperation[Any, Any, Any, Any]]:
    return [found.ok() for found in make_schema().get_all_operations() if isinstance(found, Ok)]


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


def check(case: Any, url: str) -> None:
    """Send ``case``, and compare the response with the document."""
    case.validate_response(case.call(base_url=url), checks=CHECKS)


@pytest.mark.slow
@pytest.mark.skipif(IS_LONG, reason="the long form runs")
@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize("share", range(SHARES))
def test_no_request_breaks_the_server(
    share: int, mode: GenerationMode, operations: list[APIOperation[Any, Any, Any, Any]], fuzzed_url: str
) -> None:
    fitting = [one for one in operations if one.body or mode is GenerationMode.POSITIVE]  # no body: nothing to forbid
    assert len(fitting) > 2 * SHARES
    for operation in fitting[share::SHARES]:

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
            database=None,
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: Any) -> None:
            check(case, fuzzed_url)

        ask()


if IS_LONG:
    schema = make_schema()
    num_operations = len(list(schema.get_all_operations()))

    @schema.parametrize()
    @settings(
        max_examples=max(10, int(os.environ["FUZZ_EXAMPLES"]) // num_operations),
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    def test_for_long(case: Any, fuzzed_url: str) -> None:
        check(case, fuzzed_url)
