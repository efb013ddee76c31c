"""Chat templates: messages to one prompt, in a sandbox with bounds on output and time.

The template is the model publisher's program, so it runs in jinja2's immutable sandbox: it can
change nothing it is given, reach no attribute of the process, and write no more than a bound.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn, cast

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from adex_proto.errors import TemplateError
from adex_scheduler.text.tool_calls import call_form_of

# Four megabytes of prompt is beyond any context; a template that writes more runs away.
PROMPT_CHARACTERS_MAX = 4 * 2**20
RENDER_SECONDS_MAX = 10.0
# A product such as "x" * 10**9 would fill memory in one operation, before any bound is looked at.
PRODUCT_MAX = 2**20


class GenerationTag(Extension):
    """`{% generation %}` marks what the model wrote, for training; here it only passes through."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it as a plain set

    def parse(self, parser: Parser) -> nodes.Node:
        """The marked part, as if the tag were not there."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class BoundedSandbox(ImmutableSandboxedEnvironment):
    """jinja2's sandbox, which also refuses products and powers of unreasonable size."""

    intercepted_binops = frozenset(["*", "**"])

    def call_binop(
        self,
        context: jinja2.runtime.Context,
        operator: str,
        left: object,
        right: object,
    ) -> object:
        """`left operator right`, unless the result would be huge."""
        sizes = [_size(left), _size(right)]
        if operator == "**" and max(sizes) > 64:
            raise jinja2.TemplateRuntimeError("power too large")
        if (
            operator == "*"
            and not _plain_numbers(left, right)
            and sizes[0] * sizes[1] > PRODUCT_MAX
        ):
            raise jinja2.TemplateRuntimeError("repetition too large")
        return super().call_binop(context, operator, left, right)


class ChatTemplate:
    """One model's template; `with_tools` is its variant for requests that offer tools."""

    def __init__(self, source: str, *, with_tools: str | None = None) -> None:
        environment = BoundedSandbox(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[GenerationTag, loopcontrols],
        )
        environment.filters["tojson"] = _to_json
        names: dict[str, Any] = environment.globals
        names.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
        self._plain = _compile(environment, source)
        self._with_tools = self._plain if with_tools is None else _compile(environment, with_tools)
        tools_source = source if with_tools is None else with_tools
        self.takes_tools = with_tools is not None or _mentions_tools(environment, source)
        self.call_form = call_form_of(tools_source)

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, object]] | None,
        values: Mapping[str, object],
        continues: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> str:
        """The prompt; with `continues` it ends where the last message does.

        Raises TemplateError with the template's own reason when it refuses.
        """
        if tools and not self.takes_tools:
            raise TemplateError(
                "this model's chat template has no place for tools",
                field="tools",
                remedy="Describe them in a system message, or serve a model that knows tools",
            )
        template = self._with_tools if tools else self._plain
        deadline = clock() + RENDER_SECONDS_MAX
        pieces: list[str] = []
        length = 0
        try:
            for piece in template.generate(
                {
                    **values,
                    "messages": [dict(message) for message in messages],
                    "tools": tools,
                    "documents": None,
                    "add_generation_prompt": add_generation_prompt,
                }
            ):
                pieces.append(piece)
                length += len(piece)
                if length > PROMPT_CHARACTERS_MAX:
                    raise _refusal(f"its prompt exceeds {PROMPT_CHARACTERS_MAX} characters")
                if clock() > deadline:
                    raise _refusal(f"it ran longer than {RENDER_SECONDS_MAX:g} seconds")
        except TemplateError:
            raise
        except jinja2.TemplateError as error:
            raise _refusal(str(error.message or error)) from error
        except Exception as error:  # a template is a program: any of Python's errors can come out
            raise _refusal(f"{type(error).__name__}: {error}") from error
        prompt = "".join(pieces)
        return _cut_after(prompt, str(messages[-1]["content"])) if continues else prompt


def _mentions_tools(environment: jinja2.Environment, source: str) -> bool:
    return "tools" in meta.find_undeclared_variables(environment.parse(source))


def _cut_after(prompt: str, text: str) -> str:
    """The prompt up to the end of its last message, whose white space a template may trim."""
    start = prompt.rfind(text.strip())
    if start < 0:
        raise _refusal("it does not repeat the last message as it is, which is to be continued")
    open_end = text.lstrip()
    if prompt.startswith(open_end, start):
        return prompt[: start + len(open_end)]
    return prompt[: start + len(text.strip())]


def _compile(environment: jinja2.Environment, source: str) -> jinja2.Template:
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise TemplateError(
            f"the model's chat template cannot be read: {error.message}",
            field="model_id",
        ) from error


def _refusal(reason: str) -> TemplateError:
    return TemplateError(
        f"the model's chat template refuses these messages: {reason}",
        field="messages",
        remedy="Change the messages to what the model was trained on",
    )


def _raise_exception(message: object) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _strftime_now(layout: str) -> str:
    # Templates ask for the server's own date, as the model's publisher tested them.
    return datetime.now().astimezone().strftime(layout)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes HTML and sorts keys; models were trained on neither.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _size(value: object) -> int:
    if isinstance(value, int | float):
        return abs(int(value)) if abs(value) < 2**63 else 2**63
    if isinstance(value, str | list | tuple):
        return len(cast("Sequence[object]", value))
    return 1


def _plain_numbers(left: object, right: object) -> bool:
    return isinstance(left, int | float) and isinstance(right, int | float)
