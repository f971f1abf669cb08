import pickle

import pytest

from phi3_serve.errors import (
    CheckpointError,
    EngineFailure,
    InvalidRequest,
    ModelUnavailable,
    Overloaded,
    Phi3ServeError,
    RequestTimeout,
    UnknownModel,
    nearest,
)


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequest("no", "top_k"),
        UnknownModel("who", "model"),
        ModelUnavailable("soon", 3.5),
        Overloaded("full", 1.0),
        RequestTimeout("late"),
        EngineFailure("broken"),
        CheckpointError("gone"),
    ],
)
def test_errors_survive_the_way_from_replica_to_ingress(error: Phi3ServeError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert vars(copy) == vars(error)
    assert copy.message == error.message


def test_nearest_knows_a_typo_and_stays_silent_about_noise() -> None:
    assert nearest("temprature", ["temperature", "top_k"]) == "temperature"
    assert nearest("zzz", ["temperature", "top_k"]) is None
