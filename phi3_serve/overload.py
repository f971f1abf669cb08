"""The rule of overload: the message of each refusal, the limit that it names, and when to try again.

Overload is checked cheapest first:

1. HAProxy: the requests in the server, against the capacity of all models.
2. ``api.middleware.rate_limit``: the requests and tokens of the API key, against the limits of this key.
3. ``api.middleware.admission``: the same as HAProxy, for what it lets through and for other proxies.
4. The ingress: the requests to one model, against the capacity of that model; the requests that wait for a model to
   start, against ``limits.max_waiting_requests``.
5. The engine: its waiting requests, against ``limits.max_waiting_requests`` and ``limits.max_waiting_tokens``; the time
   that a request has waited, against ``limits.queue_timeout_s``; the GPU's memory.
"""

from phi3_serve.errors import ModelUnavailable, Overloaded, RefusedBy

RETRY_AFTER_S = 5.0
"""Seconds after which a refused request may find capacity."""
REQUEST_OF_KEY_RETRY_AFTER_S = 1.0
"""Seconds after which one of a key's own requests may have ended."""
PLAIN_QUEUE_TIMEOUT_S = 50.0
"""Default of ``limits.queue_timeout_s`` for requests without a stream, in seconds. Their connection is silent, and
proxies such as nginx close a silent connection after 60 seconds."""
STARTING_RETRY_AFTER_S = 10.0
"""Seconds after which a model that is starting may be ready."""


def server_is_full(num_requests: object, capacity: object) -> Overloaded:
    """The server has more requests than all models can run or queue.

    The arguments are only printed: HAProxy's launcher passes HAProxy's own variables.
    """
    return Overloaded(
        f"The server has {num_requests} requests already; its capacity is {capacity}.", RETRY_AFTER_S, "server"
    )


def key_has_too_many_requests(name: str, limit: int) -> Overloaded:
    """The API key ``name`` has ``limit`` requests in this ingress, as many as it may."""
    return Overloaded(
        f"The API key {name} has {limit} requests running already; its max_parallel_requests is {limit}.",
        REQUEST_OF_KEY_RETRY_AFTER_S,
        "key",
    )


def key_has_used_its_tokens(name: str, limit: int, retry_after_s: float) -> Overloaded:
    """The API key ``name`` has used the tokens of its minute."""
    return Overloaded(
        f"The API key {name} has used its tokens; its tokens_per_minute is {limit}. Wait {retry_after_s:.1f} s.",
        retry_after_s,
        "key",
    )


def queue_is_full(limit: int, refused_by: RefusedBy = "queue") -> Overloaded:
    """The queue of a replica holds ``limit`` requests, as many as it may. The ingress knows it before the replica."""
    message = f"{limit} requests are waiting already; limits.max_waiting_requests is {limit}."
    return Overloaded(message, RETRY_AFTER_S, refused_by)


def waiting_prompts_are_too_long(num_tokens: int, limit: int) -> Overloaded:
    """The prompts in the queue of a replica have ``num_tokens`` tokens, and a further one would exceed ``limit``."""
    return Overloaded(
        f"Prompts of {num_tokens} tokens are waiting already; limits.max_waiting_tokens is {limit}.", RETRY_AFTER_S
    )


def too_many_wait_for_start(model: str, limit: int) -> Overloaded:
    """As many requests as may wait for ``model`` to start wait already."""
    return Overloaded(
        f"{limit} requests are waiting for model {model} to start; limits.max_waiting_requests is {limit}.",
        STARTING_RETRY_AFTER_S,
        "start",
    )


def waited_too_long() -> Overloaded:
    """The request was not started within ``limits.queue_timeout_s``."""
    return Overloaded(
        "The request waited in the queue for longer than limits.queue_timeout_s.", RETRY_AFTER_S, "queue_timeout"
    )


def router_is_full() -> Overloaded:
    """Ray Serve's router refused the request, because each replica has ``max_ongoing_requests``."""
    return Overloaded("Too many requests are waiting for this model.", RETRY_AFTER_S, "router")


def memory_is_full() -> ModelUnavailable:
    """The forward pass ran out of GPU memory."""
    return ModelUnavailable("The GPU has too little free memory for this request now.", RETRY_AFTER_S)
