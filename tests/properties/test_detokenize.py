"""Incremental detokenisation: the pieces joined are what the library decodes at once."""

import json
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from adex_scheduler.text.detokenize import REPLACEMENT, Detokenizer
from adex_scheduler.text.tokenizer import Tokenizer

CORPUS = [
    "the quick brown fox jumps over the lazy dog, and it isn't slow.",
    "def f(x):\n    return x + 1\n\n\tprint(f(2))",
    "Zürich, déjà vu, naïve; Straße 你好 世界 🙂🙃 Привет",
] * 3
KINDS = ("byte_level", "metaspace", "wordpiece", "metaspace_unigram")


def _byte_level() -> FastTokenizer:
    fast = FastTokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>", "<|user|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    fast.train_from_iterator(CORPUS, trainer)
    return fast


def _metaspace() -> FastTokenizer:
    """As Llama's: a space is part of the piece that follows, other bytes are tokens."""
    pieces = ["<s>", "</s>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", *"abcdefghijklmnopqrstuvwxyz.,", "▁t", "▁a", "he", "▁the", "▁▁"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    merges = [("▁", "t"), ("▁", "a"), ("h", "e"), ("▁t", "he"), ("▁", "▁")]
    fast = FastTokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    fast.add_special_tokens(["<s>", "</s>", "<unk>"])
    fast.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    fast.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return fast


def _metaspace_unigram() -> FastTokenizer:
    pieces: list[tuple[str, float]] = [
        ("<unk>", 0.0),
        ("</s>", 0.0),
        ("▁", -3.0),
        ("▁the", -2.0),
    ]
    pieces += [(letter, -4.0) for letter in "abcdefghijklmnopqrstuvwxyzü你.,"]
    fast = FastTokenizer(models.Unigram(pieces, 0, False))
    fast.add_special_tokens(["</s>", "<unk>"])
    fast.pre_tokenizer = pre_tokenizers.Metaspace()
    fast.decoder = decoders.Metaspace()
    return fast


def _wordpiece() -> FastTokenizer:
    fast = FastTokenizer(models.WordPiece(unk_token="[UNK]"))
    fast.normalizer = normalizers.BertNormalizer(lowercase=True)
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False
    )
    fast.train_from_iterator(CORPUS, trainer)
    return fast


BUILDERS = {
    "byte_level": _byte_level,
    "metaspace": _metaspace,
    "metaspace_unigram": _metaspace_unigram,
    "wordpiece": _wordpiece,
}


@cache
def built(kind: str) -> tuple[FastTokenizer, Tokenizer]:
    fast = BUILDERS[kind]()
    return fast, Tokenizer({"tokenizer.json": fast.to_str()})


def joined(tokenizer: Tokenizer, prompt: list[int], ids: list[int], *, skip: bool) -> str:
    detokenizer = Detokenizer(tokenizer, prompt, skip_special_tokens=skip)
    return "".join([detokenizer.push(token_id) for token_id in ids]) + detokenizer.flush()


def without_broken_runs(
    tokenizer: Tokenizer, ids: list[int], *, skip: bool
) -> tuple[list[int], int]:
    """The ids without those bytes of a byte-fallback run that follow its whole characters, and
    how many those are: bytes that are no text."""
    kept: list[int] = []
    run: list[int] = []
    broken = 0
    for token_id in [*ids, -1]:
        byte = tokenizer.fallback_byte(token_id)
        if byte is not None:
            run.append(token_id)
            continue
        if token_id >= 0 and (
            not tokenizer.is_known(token_id) or (skip and tokenizer.is_special(token_id))
        ):
            continue
        held = bytes(tokenizer.fallback_byte(member) or 0 for member in run)
        try:
            held.decode()
            whole = len(held)
        except UnicodeDecodeError as error:
            whole = error.start
        kept += run[:whole]
        broken += len(held) - whole
        run = []
        if token_id >= 0:
            kept.append(token_id)
    return kept, broken


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=150)
def test_any_tokens_give_the_text_the_library_decodes_at_once(
    kind: str, data: st.DataObject
) -> None:
    fast, tokenizer = built(kind)
    ids = data.draw(st.lists(st.integers(0, fast.get_vocab_size() + 3), max_size=24))
    skip = data.draw(st.booleans())
    kept, broken = without_broken_runs(tokenizer, ids, skip=skip)
    if broken:
        # Behind "a", so that what is left out does not change where the text begins.
        start = fast.encode("a", add_special_tokens=False).ids
        text = joined(tokenizer, [], [*start, *ids], skip=skip)
        assert text.count(REPLACEMENT) == broken
        expected = fast.decode([*start, *kept], skip_special_tokens=skip)
        assert text.replace(REPLACEMENT, "") == expected.replace(REPLACEMENT, "")
    else:
        text = joined(tokenizer, [], ids, skip=skip)
        assert text == fast.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("kind", KINDS)
@given(
    prompt=st.text(min_size=1, max_size=12),
    text=st.text(alphabet=st.sampled_from("the fox.\n ü你🙂x'"), max_size=24),
)
@settings(max_examples=100)
def test_behind_a_prompt_the_text_continues_the_prompt(kind: str, prompt: str, text: str) -> None:
    fast, tokenizer = built(kind)
    before = fast.encode("a " + prompt + " a", add_special_tokens=False).ids
    after = fast.encode(text, add_special_tokens=False).ids
    whole = fast.decode([*before, *after])
    head = fast.decode(before)
    assert head + joined(tokenizer, before, after, skip=True) == whole


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text(alphabet=st.sampled_from("the fox,.\n ü你🙂"), min_size=1, max_size=20))
@settings(max_examples=60)
def test_the_text_is_what_transformers_decodes(kind: str, text: str) -> None:
    fast, tokenizer = built(kind)
    theirs = PreTrainedTokenizerFast(tokenizer_object=fast, clean_up_tokenization_spaces=False)
    ids = fast.encode(text).ids
    assert joined(tokenizer, [], ids, skip=True) == theirs.decode(ids, skip_special_tokens=True)


def test_a_character_of_several_tokens_comes_whole() -> None:
    fast, tokenizer = built("byte_level")
    ids = fast.encode("🦜").ids
    detokenizer = Detokenizer(tokenizer)
    assert len(ids) > 1
    assert [detokenizer.push(token_id) for token_id in ids] == [""] * (len(ids) - 1) + ["🦜"]


def test_a_byte_fallback_run_is_shown_character_by_character() -> None:
    fast, tokenizer = built("metaspace")
    ids = fast.encode("你好", add_special_tokens=False).ids
    detokenizer = Detokenizer(tokenizer, fast.encode("a").ids)
    pieces = [piece for token_id in ids if (piece := detokenizer.push(token_id))]
    assert pieces == [" ", "你", "好"]


def test_a_broken_byte_fallback_run_keeps_what_was_shown() -> None:
    fast, tokenizer = built("metaspace")
    byte = {value: fast.token_to_id(f"<0x{value:02X}>") for value in range(256)}
    ids = [byte[value] for value in "你".encode()] + [byte[0xFF], byte[0xE4]]
    assert joined(tokenizer, fast.encode("a").ids, ids, skip=True) == "你" + REPLACEMENT * 2


def test_bytes_that_are_no_text_are_not_held_for_ever() -> None:
    fast, tokenizer = built("byte_level")
    lone = json.loads(fast.to_str())["model"]["vocab"]["ÿ"]
    detokenizer = Detokenizer(tokenizer, fast.encode("a").ids)
    pieces = [detokenizer.push(lone) for _ in range(1000)]
    assert sum(len(piece) for piece in pieces) >= 996
    assert "".join(pieces) + detokenizer.flush() == REPLACEMENT * 1000


def test_special_tokens_are_shown_where_asked_for() -> None:
    fast, tokenizer = built("byte_level")
    ids = [*fast.encode("the fox").ids, fast.token_to_id("<|end|>")]
    assert joined(tokenizer, [], ids, skip=True) == "the fox"
    assert joined(tokenizer, [], ids, skip=False) == "the fox<|end|>"
