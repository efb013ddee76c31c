"""From a conversation to a prompt, and from text to tokens; long work is done beside the loop."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from adex_scheduler.front.schema import Conversation, Prompt
from adex_scheduler.text.tokenizer import Tokenizer

T = TypeVar("T")
# Shorter texts are worked on at once: handing them to a thread costs more than the work itself.
INLINE_CHARACTERS_MAX = 4096


async def beside_if_long(characters: int, work: Callable[[], T]) -> T:
    """The work's result; where there are many characters it is done on a thread."""
    return work() if characters <= INLINE_CHARACTERS_MAX else await asyncio.to_thread(work)


async def rendered(tokenizer: Tokenizer, conversation: Conversation) -> str:
    """The prompt the chat template makes. Raises TemplateError where it refuses."""
    length = sum(len(str(message["content"])) for message in conversation.messages)
    return await beside_if_long(
        length + 512 * len(conversation.tools),
        lambda: tokenizer.render_chat(
            conversation.messages,
            add_generation_prompt=conversation.add_generation_prompt,
            tools=conversation.tools or None,
            template_values=conversation.template_values,
            continues=conversation.continues,
        ),
    )


async def token_ids_of(tokenizer: Tokenizer, prompt: Prompt, add_special_tokens: bool) -> list[int]:
    """The prompt's tokens."""
    if not isinstance(prompt, str):
        return list(prompt)
    return await beside_if_long(len(prompt), lambda: tokenizer.encode(prompt, add_special_tokens))
