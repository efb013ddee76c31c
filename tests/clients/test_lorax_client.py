"""lorax-client, as its users have it: every method that generates text, and what the rest says."""

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.network, pytest.mark.slow]
SIDES = ("sync", "asynchronous")


@pytest.fixture
def said(told: Callable[..., Any]) -> Any:
    return told("lorax_client", "tgi")


@pytest.mark.parametrize("side", SIDES)
def test_an_adapter_and_the_base_model_each_say_what_they_were_trained_to(
    said: Any, side: str, task: dict[str, Any]
) -> None:
    assert said[side]["adapter"]["text"] == task["answer"]
    assert said[side]["base"]["text"] == task["echo"]


@pytest.mark.parametrize("side", SIDES)
def test_a_stream_says_what_the_whole_reply_says(said: Any, side: str) -> None:
    for streamed, whole in (("streamed", "adapter"), ("streamed_base", "base")):
        events, reply = said[side][streamed], said[side][whole]
        assert events["joined"] == events["text"] == reply["text"]
        assert events["finish_reason"] == reply["finish_reason"] == "eos_token"
        assert events["events"] == events["generated_tokens"] == reply["generated_tokens"]


@pytest.mark.parametrize("side", SIDES)
def test_details_count_every_token_and_its_alternatives(said: Any, side: str) -> None:
    reply = said[side]["adapter"]
    assert "".join(reply["tokens"]) == reply["text"]
    assert reply["token_count"] == reply["generated_tokens"]
    assert reply["prefill_count"] == reply["prompt_tokens"] > 0
    assert reply["alternatives"] == [2] * reply["generated_tokens"]
    assert said["sync"]["without_details"] is None


def test_a_seed_gives_the_same_text_again_whole_streamed_and_asynchronous(said: Any) -> None:
    first, second = said["sync"]["sampled"]
    assert first == second == said["asynchronous"]["sampled"][0]
    assert first["seed"] == 7
    assert first["finish_reason"] == "length"
    assert first["generated_tokens"] == 12
    assert said["sync"]["sampled_stream"]["text"] == first["text"]
    assert said["sync"]["other_seed"]["text"] != first["text"]


def test_the_other_parameters_do_what_lorax_says_they_do(said: Any, task: dict[str, Any]) -> None:
    sync = said["sync"]
    assert sync["best_of"]["best_of"] == 1
    assert sync["best_of"]["generated_tokens"] == 6
    assert sync["stopped"]["finish_reason"] == "stop_sequence"
    assert task["answer"].startswith(sync["stopped"]["text"])
    assert sync["stopped"]["text"].endswith("FROM")
    assert sync["full_text"].startswith("<|user|>")
    assert sync["full_text"].endswith(task["echo"])
    assert sync["truncated"]["prompt_tokens"] == 5


def test_a_response_format_holds_the_text_to_its_schema(
    said: Any, judged: Callable[[str], Any]
) -> None:
    judged(said["sync"]["json"])
    judged(said["sync"]["json_with_adapter"])


@pytest.mark.parametrize("side", SIDES)
def test_refusals_are_the_clients_own_errors(said: Any, side: str) -> None:
    for name in ("missing", "missing_streamed"):
        kind, text = said[side][name]
        assert kind == "NotFoundError"
        assert "no local adapter 'missing'" in text
    kind, text = said[side]["too_long"]
    assert kind == "ValidationError"
    assert "max_new_tokens" in text
    kind, text = said[side]["merged"]
    assert kind == "ValidationError"
    assert "merged_adapters" in text
    assert said["sync"]["watermark"][0] == "ValidationError"


def test_what_is_no_generation_is_no_route(said: Any) -> None:
    for name in ("embed", "classify", "classify_batch"):
        assert said["sync"][name] == ["NotFoundError", f"no route /{name}"]
    for name in ("embed", "classify"):
        assert said["asynchronous"][name] == ["NotFoundError", f"no route /{name}"]
