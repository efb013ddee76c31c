"""The REST door described in OpenAPI 3.1, out of the declarations that the routes work by; pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus

from adex_proto.errors import ERRORS_BY_CODE
from adex_scheduler.front.fields import Json, RequestLimits, Table
from adex_scheduler.front.statuses import Family, family_of, status_of

# What HTTP itself may answer to a request with a body, besides the errors that have a code.
BODY_STATUSES = (400, 408, 413, 500)
MEANINGS = {
    200: "What was asked for.",
    400: "The body is no JSON object, or on /v1 routes a field is wrong.",
    401: "The admin key is missing or another.",
    403: "The adapter lies where this server or caller may not read.",
    404: "No such adapter.",
    408: "The body did not arrive in time.",
    409: "Pins would keep more than their share.",
    413: "The body is too large.",
    422: "A field is wrong, or the adapter cannot be served.",
    424: "The step that computed the text failed for it.",
    429: "A bounded queue is full.",
    500: "The server failed.",
    503: "The server, its worker or the adapter's source cannot answer now.",
}
RETRIED = (429, 503)
TEXT: Json = {"type": "string"}
COUNT: Json = {"type": "integer", "minimum": 0}
# One server-sent event: its data is JSON, and [DONE] ends OpenAI's streams.
EVENT: Json = {"type": "object", "properties": {"data": TEXT}, "required": ["data"]}


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path.

    `bodies` are the tables of which a body is one; `reply` the JSON Schema of a whole answer, None
    where there is none in JSON; `streams` that the answer may be server-sent events; `plain` the
    type of an answer that is neither. `computes`: it waits its turn behind the gate. `statuses`
    are those besides 200 that a route without a body has.
    """

    method: str
    path: str
    summary: str
    bodies: tuple[Table, ...] = ()
    reply: Json | None = None
    streams: bool = False
    plain: str = ""
    statuses: tuple[int, ...] = ()
    query: tuple[tuple[str, str], ...] = ()
    """Parameters of the address, each with what it is for."""

    @property
    def computes(self) -> bool:
        """Whether it takes a place among the requests under way."""
        return self.method in ("POST", "DELETE")


def document(
    operations: Sequence[Operation], limits: RequestLimits, *, title: str, version: str
) -> Json:
    """The OpenAPI document of these operations."""
    paths: dict[str, Json] = {}
    tables: dict[str, Table] = {}
    for operation in operations:
        tables.update({table.name: table for table in operation.bodies})
        described = _operation(operation)
        path = operation.path.replace(":.+}", "}")
        paths.setdefault(path, {})[operation.method.lower()] = described
    schemas: Json = {name: table.schema(limits) for name, table in sorted(tables.items())}
    schemas["TgiError"] = TGI_ERROR
    schemas["OpenAiError"] = OPENAI_ERROR
    schemas["VllmError"] = VLLM_ERROR
    return {
        "openapi": "3.1.0",
        "info": {
            "title": title,
            "version": version,
            "description": "Many LoRA adapters over one base model, in the shapes of TGI, LoRAX, "
            "OpenAI and vLLM. A missing field and null mean the same; unknown fields have no "
            "effect and are named in x-ignored-fields.",
        },
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _operation(operation: Operation) -> Json:
    described: Json = {
        "operationId": f"{operation.method.lower()}{operation.path.replace(':.+', '')}",
        "summary": operation.summary,
        "responses": _responses(operation),
    }
    if operation.bodies:
        schema = _one_of([_reference(table.name) for table in operation.bodies])
        content: Json = {"application/json": {"schema": schema}}
        described["requestBody"] = {"required": True, "content": content}
    parameters: list[Json] = [
        {"name": name, "in": "query", "description": about, "schema": {"type": "string"}}
        for name, about in operation.query
    ]
    if "{" in operation.path:
        parameters.append({"name": "name", "in": "path", "required": True, "schema": TEXT})
    if parameters:
        described["parameters"] = parameters
    return described


def _responses(operation: Operation) -> Json:
    content: Json = {}
    if operation.reply is not None:
        content["application/json"] = {"schema": operation.reply}
    if operation.streams:
        content["text/event-stream"] = {"schema": EVENT}
    if operation.plain:
        content[operation.plain] = {"schema": TEXT}
    responses: Json = {"200": {"description": MEANINGS[200], "content": content}}
    family = family_of(operation.path)
    statuses = set(operation.statuses)
    if operation.bodies:
        families = (Family.TGI, Family.OPENAI) if family is None else (family,)
        statuses.update(BODY_STATUSES)
        statuses.update(
            status_of(error("x"), each) for error in ERRORS_BY_CODE.values() for each in families
        )
    for status in sorted(statuses):
        responses[str(status)] = _error_response(status, family)
    return responses


def _error_response(status: int, family: Family | None) -> Json:
    names = {
        Family.TGI: ["TgiError"],
        Family.OPENAI: ["OpenAiError"],
        Family.VLLM: ["VllmError"],
        None: ["TgiError", "OpenAiError"],
    }[family]
    schema = _one_of([_reference(name) for name in names])
    response: Json = {
        "description": MEANINGS.get(status, HTTPStatus(status).phrase),
        "content": {"application/json": {"schema": schema}},
    }
    if status in RETRIED:
        response["headers"] = {
            "Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}
        }
    return response


def _reference(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _one_of(schemas: list[Json]) -> Json:
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def shape(required: Json, optional: Json | None = None) -> Json:
    """The schema of an object with these fields, and no others."""
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
        "additionalProperties": False,
    }


def several(item: Json) -> Json:
    """The schema of a list."""
    return {"type": "array", "items": item}


def nullable(schema: Json) -> Json:
    """The schema that takes null too."""
    return {"anyOf": [schema, {"type": "null"}]}


TGI_ERROR = shape({"error": TEXT, "error_type": TEXT}, {"field": TEXT})
OPENAI_ERROR = shape(
    {
        "error": shape(
            {"message": TEXT, "type": TEXT, "param": nullable(TEXT), "code": nullable(TEXT)}
        )
    }
)
VLLM_ERROR = shape(
    {
        "error": shape(
            {
                "message": TEXT,
                "type": TEXT,
                "param": nullable(TEXT),
                "code": {"type": "integer", "minimum": 400, "maximum": 599},
            }
        )
    }
)
