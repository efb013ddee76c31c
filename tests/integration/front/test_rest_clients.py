"""Clients other people wrote, and our own, against the same front."""

import asyncio
from typing import Any

import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import UnknownError

from adex import AsyncClient
from adex.errors import AdapterNotFound

ANSWER = "Hello, Zürich 🙂! The end."


async def test_hugging_faces_client_generates_text(door: Any) -> None:
    def use() -> tuple[Any, Any, list[Any]]:
        client = InferenceClient(base_url=door.url, timeout=10)
        plain = client.text_generation("Hi", max_new_tokens=100)
        detailed = client.text_generation(
            "Hi", details=True, adapter_id="friendly", top_n_tokens=2, max_new_tokens=4
        )
        streamed = client.text_generation("Hi", stream=True, details=True)
        return plain, detailed, list(streamed)

    plain, detailed, streamed = await asyncio.to_thread(use)
    assert plain == ANSWER
    assert detailed.details.finish_reason == "length"
    assert len(detailed.details.top_tokens) == 4
    assert door.engine.requests[1].key.name == "/adapters/friendly"
    assert streamed[-1].generated_text == ANSWER
    assert "".join(event.token.text for event in streamed if not event.token.special) == ANSWER


async def test_hugging_faces_client_chats_with_its_dummy_model(door: Any) -> None:
    messages = [{"role": "user", "content": "Hi"}]

    def use() -> tuple[Any, str]:
        client = InferenceClient(base_url=door.url, timeout=10)
        whole = client.chat_completion(messages, max_tokens=50)
        streamed = client.chat_completion(messages, stream=True)
        return whole, "".join(c.choices[0].delta.content or "" for c in streamed if c.choices)

    whole, streamed = await asyncio.to_thread(use)
    assert whole.choices[0].message.content == ANSWER
    assert streamed == ANSWER
    assert [request.key for request in door.engine.requests] == [None, None]


async def test_hugging_faces_client_hears_of_a_missing_adapter(door: Any) -> None:
    def use() -> None:
        InferenceClient(base_url=door.url, timeout=10).text_generation("Hi", adapter_id="missing")

    with pytest.raises(UnknownError, match="no adapter"):
        await asyncio.to_thread(use)


async def test_our_own_client_generates_streams_chats_and_lists(door: Any) -> None:
    async with AsyncClient(door.url) as client:
        reply = await client.generate("Hi", adapter_id="friendly", details=True, top_n_tokens=2)
        assert reply.generated_text == ANSWER
        assert reply.details is not None
        assert len(reply.details.tokens[0].alternatives) == 2
        best = await client.generate(
            "Hi", best_of=2, do_sample=True, decoder_input_details=True, max_new_tokens=2
        )
        assert best.details is not None
        assert [len(other.tokens) for other in best.details.best_of_sequences] == [2]
        assert "".join(token.text for token in best.details.prefill) == "Hi"
        events = [event async for event in client.generate_stream("Hi")]
        assert "".join(event.text for event in events) == ANSWER
        chat = await client.chat([{"role": "user", "content": "Hi"}])
        assert chat.text == ANSWER
        cards = await client.list_adapters()
        assert [card.id for card in cards] == ["friendly", "tone"]
        with pytest.raises(AdapterNotFound):
            await client.generate("Hi", adapter_id="missing")
