"""The fuzz of schemas, in short; ``make fuzz-schemas`` draws more."""

import asyncio
import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice

import pytest

from phi3_serve.catalogue import EMBEDDED_TINY
from phi3_serve.serving.replica import Replica
from tests.structured.fuzz import is_good, run
from tests.structured.schemas import drawn
from tests.support import engine_of, local_replica

NUM_SCHEMAS = 48  # for each model


@pytest.fixture(scope="module")
def tiny() -> Iterator[Replica]:
    replica = local_replica("phi-3-tiny", str(EMBEDDED_TINY), max_waiting=64)
    yield replica
    engine_of(replica).close()


def expect_good(counts: Counter[str]) -> None:
    assert is_good(counts), counts


@pytest.mark.slow
def test_answers_of_a_random_model_validate(replica: Replica) -> None:
    expect_good(asyncio.run(run(replica, islice(drawn(1), NUM_SCHEMAS), 1)))


@pytest.mark.slow
def test_answers_of_the_tiny_model_validate(tiny: Replica) -> None:
    expect_good(asyncio.run(run(tiny, islice(drawn(2), NUM_SCHEMAS), 2)))


def test_the_schemas_have_every_form() -> None:
    """The fuzz is worth its name only if it draws what clients send."""
    text = json.dumps(list(islice(drawn(0), 600)))
    forms = "properties required additionalProperties patternProperties minProperties maxProperties items prefixItems"
    forms += " minItems maxItems anyOf oneOf allOf $ref $defs enum const minLength maxLength pattern format minimum"
    forms += " exclusiveMaximum multipleOf title"
    assert [form for form in forms.split() if f'"{form}":' not in text] == []
