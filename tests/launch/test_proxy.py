"""Two servers in one machine have nothing in common."""

import re

from ray.serve._private import constants

from phi3_serve.launch import proxy as front_door


def test_no_port_and_no_path_is_another_server_s() -> None:
    one, other = (front_door.environment("haproxy", port=port, request_timeout_s=1) for port in (1, 2))
    own = {name for name in one if re.search("_PORT$|_PATH$|_LOC$|_STATE_", name)} - {"RAY_SERVE_HAPROXY_BINARY_PATH"}
    assert len(own) == 7
    assert all(one[name] != other[name] for name in own)


def test_every_port_is_of_a_setting_that_ray_has() -> None:
    door = front_door.environment("haproxy", port=1, request_timeout_s=1)
    ports = {name: value for name, value in door.items() if name.endswith("_PORT")}
    assert len(ports) == 3
    for name in ports:
        assert isinstance(getattr(constants, name), int)
