"""Headers of every response, whether the ingress sends it or the proxy before the ingress."""

REQUEST_ID = "x-request-id"
CAPACITY = "x-phi3-serve-capacity"
"""How many requests the server holds at once. HAProxy reads the header and removes it."""
SECURITY_HEADERS = {"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer"}
