"""Requests that ask for another protocol than HTTP/1.1, as bytes on a socket."""

import socket

BODY = b'{"prompt": "Hi", "generate_kwargs": {"max_new_tokens": 1}}'
UPGRADES = {
    "h2c": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n",
    "websocket": b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
    "TLS/1.0": b"Connection: Upgrade\r\nUpgrade: TLS/1.0\r\n",
}


def post_with_upgrade(address: tuple[str, int], protocol: str, is_chunked: bool, timeout_s: float = 10) -> bytes:
    """The body of the answer to a POST of ``BODY`` that asks for ``protocol``. The status must be 200."""
    if is_chunked:
        sent = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
    else:
        sent = b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
    head = b"POST /chat HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with socket.create_connection(address, timeout_s) as connection:
        connection.sendall(head + UPGRADES[protocol] + sent)
        answer = connection.makefile("rb")
        assert b" 200 " in (status := answer.readline()), status
        length = 0
        while (line := answer.readline()) not in (b"\r\n", b""):
            name, _, value = line.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        return answer.read(length)
