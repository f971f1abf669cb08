"""A wrong ``user_config`` must not end what runs."""

import logging

import pytest
from pydantic import ValidationError

from phi3_serve.config.user_config import LiveIngressConfig, LiveModelConfig
from phi3_serve.serving.live_settings import LiveSettings


def test_a_wrong_one_leaves_the_last_in_force_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("ray.serve").propagate = True
    settings = LiveSettings(LiveIngressConfig)
    good = settings.read({"auth": {"key_hashes": ["0" * 64]}})
    assert settings.read({"auth": {"key_hashes": ["secret-key"]}}) == good
    assert (
        "The previous user_config stays. user_config.auth: key_hashes[0] must be 64 hexadecimal digits" in caplog.text
    )
    assert "secret-key" not in caplog.text
    assert settings.read({}) == LiveIngressConfig()


def test_the_first_must_be_right() -> None:
    with pytest.raises(ValidationError, match="unknown key `auth`"):
        LiveSettings(LiveModelConfig).read({"auth": {"key_hashes": ["0" * 64]}})
