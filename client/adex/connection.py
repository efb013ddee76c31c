"""What the two clients share over httpx: the address, the headers, and its errors as ours."""

import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

import httpx

from adex.errors import AdexError, RequestTimeout, ServerUnreachable, StreamBroken, ValidationError


def distribution_version() -> str:
    """The installed version; "0" in a bare checkout."""
    try:
        return version("adex")
    except PackageNotFoundError:
        return "0"


def address_of(base_url: str) -> str:
    """The base address without a slash at its end; it may hold a path.

    Raises: ValidationError when it is no http or https address.
    """
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise _bad_address(base_url, str(error)) from error
    if url.scheme not in ("http", "https") or not url.host:
        raise _bad_address(base_url, "it needs http:// or https:// and a host")
    return base_url.rstrip("/")


def _bad_address(base_url: str, reason: str) -> ValidationError:
    return ValidationError(
        f"`base_url` {base_url!r} is no address: {reason}",
        field="base_url",
        remedy="Write it like http://127.0.0.1:8080",
    )


def headers_of(headers: Mapping[str, str] | None) -> dict[str, str]:
    """The caller's headers over our own."""
    return {"user-agent": f"adex/{distribution_version()}"} | dict(headers or {})


def error_of_transport(
    error: httpx.HTTPError, base_url: str, timeout_s: float, *, answered: bool
) -> AdexError:
    """What kept an answer from arriving whole, in the caller's words.

    Args:
        answered: whether the status had arrived; a connection that broke before it has told
            nothing, so the request may be sent again.
    """
    # "[Errno 111] Connection refused" needs its number no more than its reader does.
    reason = re.sub(r"^\[Errno -?\d+\] ", "", str(error)) or type(error).__name__
    if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
        return RequestTimeout(
            f"{base_url} sent nothing for {timeout_s:g} s",
            remedy="Raise the timeout, or ask for fewer tokens",
        )
    if not answered:
        return ServerUnreachable(
            f"no server answers at {base_url}: {reason}",
            remedy="Start one with `adex serve`, or correct the address",
        )
    return StreamBroken(
        f"the connection to {base_url} broke: {reason}",
        remedy="Send the request again; the server's log says why it stopped",
    )
