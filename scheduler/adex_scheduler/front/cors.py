"""What a browser is told before it lets a page of another origin read an answer."""

from collections.abc import Mapping, Sequence

ANY = "*"
# Headers of answers that are worth reading; the others a page may read anyway.
_SHOWN = (
    "Retry-After, x-adapter-id, x-adapter-source, x-adapter-tier, x-generated-tokens, "
    "x-ignored-fields, x-model-id, x-prompt-tokens, x-request-id, x-total-tokens"
)
_METHODS = "GET, POST, DELETE"
_REMEMBERED_S = 600


def allowed(origins: Sequence[str], origin: str | None) -> Mapping[str, str]:
    """The headers that let a page of `origin` read an answer; none where it may not.

    No cookie is ever read here, so that nothing has to be said of credentials.
    """
    if not origin or not (ANY in origins or origin in origins):
        return {} if ANY in origins or not origins else {"Vary": "Origin"}
    shown = {"Access-Control-Expose-Headers": _SHOWN}
    if ANY in origins:
        return {"Access-Control-Allow-Origin": ANY, **shown}
    return {"Access-Control-Allow-Origin": origin, "Vary": "Origin", **shown}


def preflight(headers_asked: str | None) -> Mapping[str, str]:
    """What is added for a request that only asks whether another may be sent."""
    told = {"Access-Control-Allow-Methods": _METHODS, "Access-Control-Max-Age": f"{_REMEMBERED_S}"}
    return {**told, "Access-Control-Allow-Headers": headers_asked} if headers_asked else told
