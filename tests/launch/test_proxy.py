"""Two servers in one machine have nothing in common, and no other user has a part in them."""

import os
import re
import stat
import tempfile
from pathlib import Path

import pytest
from ray.serve._private import constants

from phi3_serve.errors import Phi3ServeError
from phi3_serve.launch import proxy as front_door


def test_no_port_and_no_path_is_another_server_s() -> None:
    one, other = (front_door.environment("haproxy", port=port, request_timeout_s=1) for port in (1, 2))
    own = {name for name in one if re.search("_PORT$|_PATH$|_LOC$|_STATE_", name)} - {"RAY_SERVE_HAPROXY_BINARY_PATH"}
    assert len(own) == 8
    assert all(one[name] != other[name] for name in own)


def test_every_port_is_of_a_setting_that_ray_has() -> None:
    door = front_door.environment("haproxy", port=1, request_timeout_s=1)
    ports = {name: value for name, value in door.items() if name.endswith("_PORT")}
    assert len(ports) == 3
    for name in ports:
        assert isinstance(getattr(constants, name), int)


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the files of HAProxy on port 1 will be."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"phi3-serve-{os.getuid()}-1"


def refusal() -> str:
    with pytest.raises(Phi3ServeError) as caught:
        front_door.environment("haproxy", port=1, request_timeout_s=1)
    return caught.value.message


def test_the_directory_is_private_and_used_again(directory: Path) -> None:
    for _ in range(2):
        front_door.environment("haproxy", port=1, request_timeout_s=1)
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o755, 0o701])
def test_a_directory_that_others_may_open_is_refused(directory: Path, mode: int) -> None:
    directory.mkdir()
    directory.chmod(mode)
    assert refusal() == (
        f"{directory}: is open to other users (mode {mode:o}). Files are not safe there. Remove it, or set TMPDIR."
    )


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
def test_a_directory_of_another_user_is_refused(directory: Path) -> None:
    directory.mkdir(mode=0o700)
    os.chown(directory, 12345, -1)
    assert f"{directory}: belongs to another user (uid 12345)." in refusal()


def test_a_link_or_a_file_is_refused(directory: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    directory.symlink_to(elsewhere)
    assert f"{directory}: is not a directory." in refusal()
    directory.unlink()
    directory.touch(0o600)
    assert f"{directory}: is not a directory." in refusal()


@pytest.mark.parametrize(("variable", "expected"), [("1", "haproxy"), ("0", "python"), ("", "haproxy")])
def test_ray_s_own_variable_chooses_the_proxy(
    monkeypatch: pytest.MonkeyPatch, variable: str, expected: front_door.Proxy
) -> None:
    monkeypatch.setenv(front_door.ENABLE_HAPROXY, variable)
    assert front_door.default() == expected
