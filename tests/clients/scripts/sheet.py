"""What a script is asked on its standard input, and how it answers on its standard output."""

import json
import sys
from collections.abc import Callable
from typing import Any

ASKED: dict[str, Any] = json.load(sys.stdin)
URL, PROMPT = ASKED["url"], ASKED["prompt"]
ADAPTER, BASE = ASKED["adapter"], ASKED["base"]
# The prompt as the model's template renders it, for routes without one.
RENDERED = f"<|user|>{PROMPT}<|end|><|assistant|>"
MESSAGES: list[Any] = [{"role": "user", "content": PROMPT}]
SCHEMA: dict[str, Any] = ASKED["schema"]
RESPONSE_FORMAT: Any = {
    "type": "json_schema",
    "json_schema": {"name": "person", "schema": SCHEMA, "strict": True},
}
TOOL: Any = {
    "type": "function",
    "function": {"name": "remember", "description": "Remembers one.", "parameters": SCHEMA},
}


def raised(call: Callable[[], Any]) -> list[str]:
    """The type's name and the text of what a call raises; nothing raised is told as such."""
    try:
        outcome = call()
    except Exception as error:
        return [type(error).__name__, str(error)]
    return ["nothing", repr(outcome)]


async def raised_async(call: Callable[[], Any]) -> list[str]:
    """The same for a call that is awaited."""
    try:
        outcome = await call()
    except Exception as error:
        return [type(error).__name__, str(error)]
    return ["nothing", repr(outcome)]


def tell(**facts: Any) -> None:
    """Ends a script's work: what it found, as one JSON object."""
    json.dump(facts, sys.stdout)
