"""Headers of every response, whether the ingress sends it or the proxy before the ingress."""

from contextlib import suppress

REQUEST_ID = "x-request-id"
CAPACITY = "x-phi3-serve-capacity"
"""How many requests the server holds at once. HAProxy reads the header and removes it."""
WARNING = "x-phi3-serve-warning"
"""Fields of the request that had no effect. The body of the answer has the same warnings."""
# OpenAI's: https://platform.openai.com/docs/guides/rate-limits#rate-limits-in-headers
LIMIT_REQUESTS = "x-ratelimit-limit-requests"
REMAINING_REQUESTS = "x-ratelimit-remaining-requests"
LIMIT_TOKENS = "x-ratelimit-limit-tokens"
REMAINING_TOKENS = "x-ratelimit-remaining-tokens"
RESET_TOKENS = "x-ratelimit-reset-tokens"
READABLE_BY_PAGES = (
    *(REQUEST_ID, "Retry-After", WARNING),
    *(LIMIT_REQUESTS, REMAINING_REQUESTS, LIMIT_TOKENS, REMAINING_TOKENS, RESET_TOKENS),
)
"""What the script of a page of another origin may read of a response (CORS)."""


def prefers_html(accept: str) -> bool:
    """Whether an Accept header asks for HTML rather than for JSON, as browsers do; ``*/*`` alone does not."""
    weights = {"text/html": 0.0, "application/json": 0.0}
    for part in accept.lower().split(","):
        media_type, *parameters = (item.strip() for item in part.split(";"))
        weight = next((item.removeprefix("q=") for item in parameters if item.startswith("q=")), "1")
        with suppress(ValueError):
            weights[media_type] = float(weight)
    return weights["text/html"] > weights["application/json"]


SECURITY_HEADERS = {"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer"}
