import pickle

import pytest

from phi3_serve.batch.lines import LineError
from phi3_serve.errors import (
    AdapterUnavailable,
    CheckpointError,
    EngineFailure,
    InvalidRequest,
    ModelUnavailable,
    NotFound,
    Overloaded,
    Phi3ServeError,
    ReplicaLost,
    RequestTimeout,
    UnknownModel,
    did_you_mean,
)


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequest("no", "top_k"),
        UnknownModel("who", "model"),
        NotFound("which", "file_id"),
        LineError(3, "invalid_value", "`url` must be a path", "url"),
        ModelUnavailable("soon", 3.5),
        AdapterUnavailable("broken", 3.5),
        Overloaded("full", 1.0, "key"),
        RequestTimeout("late"),
        EngineFailure("broken"),
        ReplicaLost("gone with its replica"),
        CheckpointError("gone"),
    ],
)
def test_errors_survive_the_way_from_replica_to_ingress(error: Phi3ServeError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert vars(copy) == vars(error)
    assert copy.message == error.message


def test_a_typo_gets_the_nearest_name_and_noise_none() -> None:
    valid = ["temperature", "top_k"]
    assert did_you_mean("temprature", valid) == "; did you mean `temperature`?"
    assert did_you_mean("TopK", ["top_k", "Poet"]) == "; did you mean `top_k`?"
    assert did_you_mean("POET", ["top_k", "Poet"]) == "; did you mean `Poet`?"
    assert did_you_mean("temprature", valid, quote="") == "; did you mean temperature?"
    assert did_you_mean("zzz", valid) == "."
    assert did_you_mean("zzz", valid, "; valid are all others.") == "; valid are all others."
