"""The rule of overload: what a refused request is told, which limit it met, and when to try again.

Overload is checked cheapest first. HAProxy and then ``api.middleware.admission`` compare the requests in the server
with the capacity of all models together. The ingress compares the requests of one model with that model's capacity.
The engine knows its queue and its memory, and decides last.
"""

from phi3_serve.errors import ModelUnavailable, Overloaded

RETRY_AFTER_S = 5.0


def server_is_full(num_inside: object, capacity: object) -> Overloaded:
    """More requests than all models can run or keep waiting; the arguments are printed, so HAProxy can give formats."""
    return Overloaded(f"{num_inside} requests are here already, the limit is {capacity}.", RETRY_AFTER_S)


def queue_is_full(limit: int) -> Overloaded:
    """A replica keeps no more than ``limit`` requests waiting (``limits.max_waiting_requests``)."""
    return Overloaded(f"{limit} requests are waiting already, the limit is {limit}.", RETRY_AFTER_S)


def waiting_prompts_are_too_long(num_tokens: int, limit: int) -> Overloaded:
    """The prompts that wait have ``num_tokens``; ``limits.max_waiting_tokens`` is ``limit``."""
    return Overloaded(f"Prompts of {num_tokens} tokens are waiting already, the limit is {limit}.", RETRY_AFTER_S)


def waited_too_long() -> Overloaded:
    """The request was not started within ``limits.queue_timeout_s``."""
    return Overloaded("The request waited too long for its turn.", RETRY_AFTER_S)


def router_is_full() -> Overloaded:
    """Ray Serve's own router refused the request (``max_ongoing_requests``)."""
    return Overloaded("Too many requests are waiting for this model.", RETRY_AFTER_S)


def memory_is_full() -> ModelUnavailable:
    """The forward pass ran out of GPU memory."""
    return ModelUnavailable("The GPU's memory does not hold this request now.", RETRY_AFTER_S)
