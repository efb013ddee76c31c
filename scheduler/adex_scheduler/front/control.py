"""Control of adapters as every door offers it: who may, what is done, and how it is told.

Whoever may send requests may list what they may name, preload and prefetch: a request would do as
much. What binds others, pins, reloads, unloads and names for everyone, is the operator's, who has
the admin key; without a key nobody has it.
"""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace

from adex_proto.adapter import AdapterKey, Tier
from adex_proto.errors import Unauthorized
from adex_scheduler.engine import Action, ControlRequest, Progress
from adex_scheduler.front.callers import EVERYONE, payer_of, shows
from adex_scheduler.front.catalogue import AdapterCard, card_of
from adex_scheduler.front.listing import adapter_card, known_cards
from adex_scheduler.front.ports import Serving
from adex_scheduler.front.schema import check_credential
from adex_scheduler.front.schema_control import ControlWish

FREE = (Action.PRELOAD, Action.PREFETCH)
# Where a caller who lists adapters shows the token of its own.
TOKEN_HEADER = "x-api-token"  # noqa: S105 - the header's name, no token

Json = dict[str, object]


def require_admin(serving: Serving, credential: str | None) -> None:
    """Go on only for the operator. `credential` is the authorization header.

    Raises: Unauthorized.
    """
    options = serving.options
    if options.open_admin:
        return
    if not options.admin_key:
        raise Unauthorized(
            "control of adapters is off",
            remedy="Start the server with ADEX_ADMIN_KEY, and send that key as a bearer token",
        )
    if not shows(credential, options.admin_key):
        raise Unauthorized(
            "this needs the admin key", remedy="Send it as a bearer token in `authorization`"
        )


def request_of(serving: Serving, wish: ControlWish, credential: str | None) -> ControlRequest:
    """What the engine is asked. Raises Unauthorized, and ValidationError for a bad name."""
    if wish.action not in FREE:
        require_admin(serving, credential)
    tenant = payer_of(serving.options, credential)
    key = serving.directory.key_of(wish.adapter, EVERYONE, wish.credential)
    assert key is not None
    private = key.credentialed
    return ControlRequest(
        action=wish.action,
        tenant=key.tenant if private else tenant,
        key=key,
        tier=wish.tier,
        disk=wish.disk,
        credential=wish.credential if private else "",
    )


async def told(
    serving: Serving, wish: ControlWish, request: ControlRequest
) -> AsyncGenerator[Json, None]:
    """Each tier the adapter reaches, and at last the adapter as it then is. Raises AdexError."""
    async with aclosing(serving.engine.control(request)) as progress:
        async for step in progress:
            yield _event(serving, wish, request.key, step)


async def done(serving: Serving, wish: ControlWish, request: ControlRequest) -> Json:
    """The adapter when all is done. Raises AdexError."""
    last: Json = {}
    async with aclosing(told(serving, wish, request)) as events:
        async for event in events:
            last = event
    adapter = last["adapter"]
    assert isinstance(adapter, dict)
    return adapter


async def carry_out(serving: Serving, action: Action, key: AdapterKey) -> None:
    """Do one thing with a public adapter, in host memory at most. Raises AdexError."""
    request = ControlRequest(action, key.tenant, key, tier=Tier.HOST)
    async with aclosing(serving.engine.control(request)) as progress:
        async for _ in progress:
            pass


def beginning(serving: Serving, wish: ControlWish, request: ControlRequest) -> Json:
    """The first event of a stream: where the adapter is before anything is done."""
    status = serving.engine.adapter(request.key)
    tier, digest = (status.tier, status.digest) if status else (Tier.ABSENT, "")
    return _event(serving, wish, request.key, Progress(digest, tier, done=False))


async def all_adapters(serving: Serving, token: str) -> list[Json]:
    """Every adapter the caller may name, with what is known of it.

    Names that belong to a credential are listed for its holder, who shows it as `token`.
    Raises: ValidationError for what is no token.
    """
    check_credential(TOKEN_HEADER, token)
    return [detailed(serving, card) for card in await known_cards(serving, token)]


def detailed(serving: Serving, card: AdapterCard) -> Json:
    """One adapter with all that is known; null for what nobody has read yet."""
    status = card.status
    shown: Mapping[str, object] = adapter_card(serving, card)
    return {
        "id": card.name,
        "object": "adapter",
        **{name: shown[name] for name in ("source", "root", "parent", "tier", "bytes", "rank")},
        "digest": (status.digest or None) if status else None,
        "moving": bool(status and status.moving),
        "pins": status.pins if status else 0,
        "waiting": status.waiting if status else 0,
        "pinned": status.pinned.name.lower() if status and status.pinned else None,
        "pin_error": (status.pin_error or None) if status else None,
        "last_used_s": round(status.last_used_s, 3) if status and status.digest else None,
    }


def _event(serving: Serving, wish: ControlWish, key: AdapterKey, step: Progress) -> Json:
    status = serving.engine.adapter(key)
    if status is not None and step.done:
        # What was asked may have come about a moment before the books were looked at.
        status = replace(status, tier=step.tier) if status.digest == step.digest else status
    adapter = detailed(serving, card_of(wish.adapter.name, key, status)) if step.done else None
    return {
        "id": wish.adapter.name,
        "action": wish.action.value,
        "tier": step.tier.name.lower(),
        "digest": step.digest or None,
        "bytes": status.bundle_bytes if status and status.digest == step.digest else None,
        "done": step.done,
        "adapter": adapter,
    }
