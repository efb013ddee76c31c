"""One gRPC call from arrival to answer: its clock, its account, and its error as a status.

    error                                        status
    validation, template_error                   INVALID_ARGUMENT
    adapter_not_found                            NOT_FOUND
    adapter_forbidden                            PERMISSION_DENIED
    unauthorized                                 UNAUTHENTICATED
    other adapter_*, rank_too_large, pin_refused FAILED_PRECONDITION
    overloaded                                   RESOURCE_EXHAUSTED
    shutting_down, source_unavailable, cache_full, worker_lost   UNAVAILABLE
    generation                                   ABORTED
    protocol, anything else                      INTERNAL

Trailing metadata names the error's stable code and field, as text and as google.rpc.Status. A
deadline or a caller who cancels ends the handler, and with it the sequence.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, NoReturn, Self

import grpc

from adex_proto.errors import (
    AdapterForbidden,
    AdapterNotFound,
    AdexError,
    CallerError,
    CapacityError,
    Overloaded,
    ServerError,
    StepFailed,
    TemplateError,
    Unauthorized,
    ValidationError,
    WorkerLost,
)
from adex_proto.generate_codec import status_message
from adex_scheduler.front.account import close_account, context_of, operation_of, request_id_of
from adex_scheduler.front.callers import payer_of
from adex_scheduler.front.generation import Timeline
from adex_scheduler.front.ports import Ended, Serving

LOG = logging.getLogger("adex.front")
CLIENT_GONE = "cancelled"


@dataclass(slots=True)
class Call:
    """One call: its name, the text metadata that came with it, and its clock."""

    request_id: str
    metadata: dict[str, str]
    timeline: Timeline = field(default_factory=Timeline)
    adapter: str | None = None

    @classmethod
    def of(cls, context: Any) -> Self:
        """A call that just arrived; a sane x-request-id of the caller's is kept."""
        pairs = context.invocation_metadata() or ()
        metadata = {str(key): value for key, value in pairs if isinstance(value, str)}
        return cls(request_id_of(metadata), metadata)

    @property
    def credential(self) -> str | None:
        """The authorization that came with it."""
        return self.metadata.get("authorization")

    def ended(self, method: str, status: str, code: str) -> Ended:
        """The call as it is told when it is over."""
        timeline = self.timeline
        endpoint = f"grpc:{method}"
        return Ended(
            door="grpc",
            method="grpc",
            endpoint=endpoint,
            operation=operation_of("grpc", endpoint),
            status=status,
            code=code,
            request_id=self.request_id,
            began_s=timeline.began_s,
            ended_s=monotonic(),
            first_token_s=timeline.first_token_s,
            queue_s=timeline.queue_s,
            prompt_tokens=sum(run.journey.prompt_tokens for run in timeline.runs),
            new_tokens=sum(run.journey.generated for run in timeline.runs),
            adapter=self.adapter,
            runs=timeline.runs,
            context=context_of(self.metadata),
        )


@asynccontextmanager
async def visited(
    serving: Serving, method: str, context: Any, *, counted: bool = True
) -> AsyncGenerator[Call, None]:
    """Count, measure and log one call; turn its error into a status."""
    call, code, status = Call.of(context), "ok", grpc.StatusCode.OK
    try:
        await context.send_initial_metadata((("x-request-id", call.request_id),))
        payer_of(serving.options, call.credential)
        with serving.gate.entered() if counted else nullcontext():
            yield call
    except AdexError as error:
        code, status = error.code, status_of(error)
        await abort(context, error)
    except (asyncio.CancelledError, GeneratorExit):
        code, status = CLIENT_GONE, grpc.StatusCode.CANCELLED
        raise
    except Exception:
        LOG.exception("the call %s failed in the server", method)
        code, status = "internal", grpc.StatusCode.INTERNAL
        await abort(context, ServerError("something went wrong in the server"))
    finally:
        close_account(serving, call.ended(method, status.name, code))


async def abort(context: Any, error: AdexError) -> NoReturn:
    """End the call with the error's status, and what else is known of it behind that."""
    metadata: list[tuple[str, str]] = [("adex-error-code", error.code)]
    if error.field is not None:
        metadata.append(("adex-error-field", error.field))
    if error.retry_after_s is not None:
        metadata.append(("retry-after-ms", str(round(error.retry_after_s * 1000))))
    status = status_of(error)
    details = ("grpc-status-details-bin", status_message(error, status.value[0]))
    await context.abort(status, str(error), trailing_metadata=(*metadata, details))
    raise AssertionError("abort raises")


def status_of(error: AdexError) -> grpc.StatusCode:
    """The gRPC status of an error; see the table above."""
    match error:
        case ValidationError() | TemplateError():
            return grpc.StatusCode.INVALID_ARGUMENT
        case AdapterNotFound():
            return grpc.StatusCode.NOT_FOUND
        case AdapterForbidden():
            return grpc.StatusCode.PERMISSION_DENIED
        case Unauthorized():
            return grpc.StatusCode.UNAUTHENTICATED
        case CallerError():
            return grpc.StatusCode.FAILED_PRECONDITION
        case Overloaded():
            return grpc.StatusCode.RESOURCE_EXHAUSTED
        case CapacityError() | WorkerLost():
            return grpc.StatusCode.UNAVAILABLE
        case StepFailed():
            return grpc.StatusCode.ABORTED
        case _:
            return grpc.StatusCode.INTERNAL
