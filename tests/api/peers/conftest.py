"""phi-3-tiny behind a real socket, for what the API tests of other servers assert."""

from collections.abc import Callable, Iterator

import pytest
from fastapi import FastAPI
from openai import OpenAI


@pytest.fixture(scope="session")
def url(make_tiny_app: Callable[[], FastAPI], serve_app: Callable[[FastAPI], str]) -> str:
    return serve_app(make_tiny_app())


@pytest.fixture(scope="session")
def sdk(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as sdk:
        yield sdk
