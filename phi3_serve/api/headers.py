"""Headers of every answer, whether the ingress gives it or the proxy before it."""

REQUEST_ID = "x-request-id"
CAPACITY = "x-phi3-serve-capacity"
"""How many requests may be here at once; the proxy reads it, and no client sees it behind HAProxy."""
SAFE = {"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer"}
