"""The tokenizer: what transformers makes of the same files."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as FastTokenizer
from transformers import AutoTokenizer

from adex_proto.errors import TemplateError, ValidationError
from adex_scheduler.text.tokenizer import Tokenizer

TEXTS = ["Hello, world", "  two  spaces", "Zürich 你好 🙂", "", "<|end|> inside", "a\n\tb"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder with a byte-level tokenizer that begins prompts with <|begin|>."""
    place = tmp_path_factory.mktemp("model")
    fast = FastTokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    fast.train_from_iterator(["Hello, world. Two spaces"] * 2, trainer)
    fast.add_tokens([AddedToken("<tool>", special=False)])
    fast.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", 0)]
    )
    fast.save(str(place / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|begin|>",
        "eos_token": {"content": "<|end|>", "__type": "AddedToken"},
        "clean_up_tokenization_spaces": False,
    }
    (place / "tokenizer_config.json").write_text(json.dumps(config))
    (place / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 5]}))
    return place


@pytest.fixture(scope="module")
def ours(folder: Path) -> Tokenizer:
    return Tokenizer.load(str(folder))


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("add_special_tokens", [True, False])
def test_a_text_encodes_as_in_transformers(
    ours: Tokenizer, theirs: Any, text: str, add_special_tokens: bool
) -> None:
    expected = theirs(text, add_special_tokens=add_special_tokens)["input_ids"]
    assert ours.encode(text, add_special_tokens) == expected


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("skip", [True, False])
def test_tokens_decode_as_in_transformers(
    ours: Tokenizer, theirs: Any, text: str, skip: bool
) -> None:
    ids = ours.encode(text)
    assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)


def test_end_tokens_are_those_of_the_generation_config(ours: Tokenizer) -> None:
    assert ours.eos_token_ids == (1, 5)


def test_without_configs_the_tokenizers_own_end_token_counts(folder: Path) -> None:
    files = {
        name: (folder / name).read_text() for name in ("tokenizer.json", "tokenizer_config.json")
    }
    assert Tokenizer(files).eos_token_ids == (1,)
    assert Tokenizer({**files, "config.json": '{"eos_token_id": 7}'}).eos_token_ids == (7,)


def test_special_tokens_are_known_by_id(ours: Tokenizer) -> None:
    assert [ours.is_special(token_id) for token_id in (0, 1, 2)] == [True, True, False]
    assert not ours.is_special(ours.vocabulary - 1), "an added token need not be special"
    assert ours.token_text(1) == "<|end|>"
    assert ours.token_text(ours.vocabulary + 5) == ""


def test_the_bytes_of_single_tokens_join_to_the_text(ours: Tokenizer) -> None:
    text = "Zürich 你好 🙂"
    ids = ours.encode(text, add_special_tokens=False)
    assert b"".join(ours.token_bytes(token_id) for token_id in ids).decode() == text


def test_offsets_point_at_the_tokens_text(ours: Tokenizer) -> None:
    text = "Hello, world"
    tokens = ours.encode_with_offsets(text, add_special_tokens=False)
    assert "".join(text[start:stop] for _, start, stop in tokens) == text


def test_a_model_without_a_template_says_so(ours: Tokenizer) -> None:
    with pytest.raises(TemplateError, match="no chat template"):
        ours.render_chat([{"role": "user", "content": "a"}])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("chat_template.jinja", "{{ messages[0].content }}!"),
        ("chat_template.json", json.dumps({"chat_template": "{{ messages[0].content }}!"})),
        ("tokenizer_config.json", json.dumps({"chat_template": "{{ messages[0].content }}!"})),
        (
            "tokenizer_config.json",
            json.dumps(
                {
                    "chat_template": [
                        {"name": "tool_use", "template": "tools"},
                        {"name": "default", "template": "{{ messages[0].content }}!"},
                    ]
                }
            ),
        ),
    ],
)
def test_the_template_is_found_wherever_it_may_be(folder: Path, name: str, content: str) -> None:
    files = {"tokenizer.json": (folder / "tokenizer.json").read_text(), name: content}
    assert Tokenizer(files).render_chat([{"role": "user", "content": "a"}]) == "a!"


def test_a_model_without_a_tokenizer_is_refused_with_a_reason(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"has no tokenizer\.json"):
        Tokenizer.load(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValidationError, match="cannot be read"):
        Tokenizer.load(str(tmp_path))
    with pytest.raises(ValidationError, match="neither a folder nor"):
        Tokenizer.load("no such/model at all")


def test_while_a_long_text_is_encoded_other_threads_go_on(ours: Tokenizer) -> None:
    """A library that keeps the interpreter's lock would stop every stream for as long."""
    turns, over = 0, threading.Event()

    def take_turns() -> None:
        nonlocal turns
        while not over.wait(0.001):
            turns += 1

    other = threading.Thread(target=take_turns)
    other.start()
    before = turns
    ours.encode("Hello, world. " * 150_000)
    during = turns - before
    over.set()
    other.join()
    assert during > 10
