"""Messages, tools and what else a chat template is given."""

import contextlib
import json
from collections.abc import Mapping
from typing import cast

from adex_proto.errors import ValidationError
from adex_scheduler.front.body import refusal, whole_text
from adex_scheduler.front.fields import (
    Json,
    RequestLimits,
    Table,
    Values,
    an_object,
    boolean,
    choice,
    custom,
    listed,
    nested,
    refused,
    string,
)
from adex_scheduler.front.schema import Conversation
from adex_scheduler.front.schema_tools import (
    OFFERED_FIELD,
    OFFERED_NAME,
    PARALLEL_TOOL_CALLS,
    TOOL_CHOICE,
    TOOLS,
    offered,
)

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
TEXT_PARTS = ("text", "input_text")


def _content(field: str, value: object, _: RequestLimits) -> str:
    """A string, or the texts of its parts joined."""
    if isinstance(value, str):
        return whole_text(field, value)
    if not isinstance(value, list):
        raise refusal(field, value, "must be a string", "Send a string or a list of text parts")
    texts: list[str] = []
    for index, item in enumerate(cast("list[object]", value)):
        part = _item(f"{field}[{index}]", item)
        kind = part.get("type")
        if kind not in TEXT_PARTS:
            name = f"{field}[{index}].type"
            raise refusal(name, kind, 'must be "text"', "Send text only: nothing else is read")
        text = part.get("text")
        if not isinstance(text, str):
            raise refusal(f"{field}[{index}].text", text, "must be a string", "Send the text")
        texts.append(whole_text(f"{field}[{index}].text", text))
    return "".join(texts)


def _item(field: str, value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise refusal(field, value, "must be an object", "Send an object")
    return cast("dict[str, object]", value)


_PART: Json = {
    "type": "object",
    "properties": {"type": {"enum": list(TEXT_PARTS)}, "text": {"type": "string"}},
    "required": ["type", "text"],
}
ROLE = choice("role", "Who speaks.", dict(zip(ROLES, ROLES, strict=True))).demanded(
    f"Send one of {', '.join(ROLES)}"
)
CONTENT = custom(
    "content",
    "The message's text, or parts of it.",
    _content,
    {"anyOf": [{"type": "string"}, {"type": "array", "items": _PART}]},
)
NAME, CALL_ID = string("name", "Who exactly speaks."), string("tool_call_id", "Which call it is.")
REASONING = string("reasoning_content", "What the model thought before.")
FUNCTION_NAME = string("name", "The function's name.").otherwise("")
ARGUMENTS = custom("arguments", "JSON, as text or as it is.", lambda _, value, __: value, {})
FUNCTION = Table("CalledFunction", FUNCTION_NAME, ARGUMENTS)
FUNCTION_FIELD = nested("function", "What was called.", FUNCTION)
CALL_IDENTITY = string("id", "The call's own name.")
CALL = Table("ToolCall", CALL_IDENTITY, FUNCTION_FIELD)


def _calls(field: str, value: object, limits: RequestLimits) -> tuple[Json, ...]:
    calls: list[Json] = []
    for index, item in enumerate(listed(field, value, limits.tools_max)):
        path = f"{field}[{index}]"
        call = CALL.read(_item(path, item), limits, path)
        function = call[FUNCTION_FIELD] or FUNCTION.read({}, limits)
        arguments = function[ARGUMENTS]
        if isinstance(arguments, str):
            # Callers send the arguments as JSON text; templates write them out themselves.
            with contextlib.suppress(ValueError, RecursionError):
                arguments = json.loads(arguments)
        written: Json = {"name": function[FUNCTION_NAME], "arguments": arguments}
        calls.append({"id": call[CALL_IDENTITY], "type": "function", "function": written})
    return tuple(calls)


TOOL_CALLS = custom(
    "tool_calls",
    "What the assistant called.",
    _calls,
    lambda limits: {
        "type": "array",
        "items": CALL.schema(limits),
        "maxItems": limits.tools_max,
    },
)
MESSAGE = Table("Message", ROLE, CONTENT, NAME, CALL_ID, REASONING, TOOL_CALLS)


def _message(values: Values) -> Json:
    """One message as templates read it: its text in one string, its tool calls as objects."""
    content, calls = values[CONTENT], values[TOOL_CALLS]
    if content is None and not calls and values[ROLE] != "assistant":
        name = values.name_of(CONTENT)
        raise ValidationError(f"`{name}` is missing", field=name, remedy="Send the message's text")
    plain: Json = {"role": values[ROLE], "content": content or ""}
    for field in (NAME, CALL_ID, REASONING):
        text = values[field]
        if text is not None:
            plain[field.name] = text
    if calls:
        plain["tool_calls"] = list(calls)
    return plain


def _messages(field: str, value: object, limits: RequestLimits) -> tuple[Json, ...]:
    items = listed(field, value, limits.messages_max)
    if not items:
        raise ValidationError(
            f"`{field}` is empty",
            field=field,
            remedy='Send a list such as [{"role": "user", "content": "..."}]',
        )
    found: list[Json] = []
    for index, item in enumerate(items):
        path = f"{field}[{index}]"
        found.append(_message(MESSAGE.read(_item(path, item), limits, path)))
    return tuple(found)


MESSAGES = custom(
    "messages",
    "The conversation so far.",
    _messages,
    lambda limits: {
        "type": "array",
        "items": MESSAGE.schema(limits),
        "minItems": 1,
        "maxItems": limits.messages_max,
    },
).demanded('Send a list such as [{"role": "user", "content": "..."}]')


def _template_values(field: str, value: object, _: RequestLimits) -> Mapping[str, object]:
    return an_object(field, value)


TEMPLATE_VALUES = custom(
    "chat_template_kwargs", "Values for the template.", _template_values, {"type": "object"}
)
ADD_GENERATION_PROMPT = boolean(
    "add_generation_prompt", "End the prompt where the assistant begins to speak."
)
CONTINUE_FINAL_MESSAGE = boolean(
    "continue_final_message", "Leave the last message open, for the model to go on with it."
).otherwise(False)
# A template writes the model's special tokens itself.
TEMPLATE_SPECIAL_TOKENS = boolean(
    "add_special_tokens", "Put special tokens around what the template made."
).otherwise(False)

CONVERSATION = (
    MESSAGES,
    TEMPLATE_VALUES,
    ADD_GENERATION_PROMPT,
    CONTINUE_FINAL_MESSAGE,
    TEMPLATE_SPECIAL_TOKENS,
    TOOLS,
    TOOL_CHOICE,
    PARALLEL_TOOL_CALLS,
    refused("chat_template", "Leave it out: the model's own template is used"),
    refused("documents", "Write them into the messages", but=([],)),
    refused("tool_prompt", "Leave it out: the model's own template presents tools"),
    refused("guideline", "Leave it out, or write it into a system message"),
    refused("modalities", 'Leave it out or send ["text"]', but=(["text"],)),
    refused("functions", "Send `tools` instead", but=([],)),
    refused("function_call", "Send `tool_choice` instead", but=("none", "auto")),
    refused("mm_processor_kwargs", "Leave it out: nothing but text is read"),
)


def conversation_of(values: Values) -> Conversation:
    """What a chat template is given. Raises ValidationError where fields are at odds."""
    messages, continues = values[MESSAGES], values[CONTINUE_FINAL_MESSAGE]
    prompt, given = values[ADD_GENERATION_PROMPT], values[TEMPLATE_VALUES]
    if continues and prompt:
        name = values.name_of(CONTINUE_FINAL_MESSAGE)
        why = "cannot go with `add_generation_prompt`"
        raise refusal(name, continues, why, "Send one of them")
    if continues and messages[-1]["role"] != "assistant":
        name = values.name_of(CONTINUE_FINAL_MESSAGE)
        why = "needs a last message of the assistant's"
        raise refusal(name, continues, why, "End `messages` with the text to go on with")
    tools = offered(values)
    return Conversation(
        messages=messages,
        template_values=given or {},
        add_generation_prompt=prompt is not False and not continues,
        continues=continues,
        tools=tuple(tool.raw for tool in tools),
        tool_names=tuple(tool[OFFERED_FIELD][OFFERED_NAME] for tool in tools),
        add_special_tokens=values[TEMPLATE_SPECIAL_TOKENS],
    )
