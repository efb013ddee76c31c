"""Text to token ids and back for one base model; no torch, no transformers."""

from collections.abc import Mapping, Sequence
from typing import Self, cast

from tokenizers import Tokenizer as FastTokenizer

from adex_proto.errors import TemplateError, ValidationError
from adex_scheduler.text.chat import ChatTemplate
from adex_scheduler.text.files import json_object, read_model_files
from adex_scheduler.text.tool_calls import CallForm

# Texts whose last token is plain text in any vocabulary with Latin letters or digits.
ANCHOR_TEXTS = ("a", "e", "the", "A", "0", "1", "x")
NAMED_SPECIAL_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


class Tokenizer:
    """One base model's text: encode, decode, single tokens, chat.

    Special tokens at the ends of a prompt are those of tokenizer.json's post-processor. Safe to
    share between threads: nothing changes after construction.
    """

    def __init__(self, files: Mapping[str, str]) -> None:
        try:
            self._fast = FastTokenizer.from_str(files["tokenizer.json"])
        except Exception as error:  # the library raises bare Exception for a damaged file
            raise ValidationError(
                f"tokenizer.json cannot be read: {error}", field="model_id"
            ) from error
        self._fast.no_padding()
        self._fast.no_truncation()
        state = json_object(files["tokenizer.json"], "tokenizer.json")
        config = _object_file(files, "tokenizer_config.json")
        self._named_special = _named_special(config, _object_file(files, "special_tokens_map.json"))
        self._special = self._special_ids(config)
        self._fallback = (
            self._fallback_bytes() if _mentions(state.get("decoder"), "ByteFallback") else {}
        )
        self._byte_level = _mentions(state.get("decoder"), "ByteLevel")
        self._vocabulary = self._fast.get_vocab_size(with_added_tokens=True)
        self.eos_token_ids = self._end_tokens(files)
        self._chat = _chat_template(files, config)
        self.anchor, self.anchor_text = self._find_anchor()

    @classmethod
    def load(cls, model: str, revision: str | None = None) -> Self:
        """The tokenizer of a folder or hub id. Raises ValidationError when there is none."""
        return cls(read_model_files(model, revision))

    @property
    def vocabulary(self) -> int:
        """How many tokens there are, added ones included."""
        return self._vocabulary

    @property
    def has_chat_template(self) -> bool:
        """Whether `render_chat` can work at all."""
        return self._chat is not None

    @property
    def call_form(self) -> CallForm:
        """How this model writes tool calls, as far as its chat template tells."""
        return CallForm.BARE if self._chat is None else self._chat.call_form

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`, with the special tokens of a whole prompt unless told otherwise."""
        # A batch of one: `encode` would keep the interpreter's lock, and every stream with it, for
        # as long as it takes, and note offsets that nobody asks for.
        [encoding] = self._fast.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return list(encoding.ids)

    def encode_with_offsets(
        self, text: str, add_special_tokens: bool = True
    ) -> list[tuple[int, int, int]]:
        """(token id, start, stop) with offsets in characters of `text`."""
        [encoding] = self._fast.encode_batch([text], add_special_tokens=add_special_tokens)
        return [(token, *span) for token, span in zip(encoding.ids, encoding.offsets, strict=True)]

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of a whole sequence of tokens."""
        if skip_special_tokens:
            token_ids = [token_id for token_id in token_ids if token_id not in self._special]
        return self.decode_raw(token_ids)

    def decode_raw(self, token_ids: Sequence[int]) -> str:
        """The text of these tokens as the beginning of a text, special ones included."""
        return self._fast.decode(list(token_ids), skip_special_tokens=False)

    def token_text(self, token_id: int) -> str:
        """One token's own text as it continues a text; U+FFFD where it is part of a character."""
        if not self.is_known(token_id):
            return ""
        if token_id in self._special:
            return self._fast.id_to_token(token_id) or ""
        return self.decode_raw([*self.anchor, token_id])[len(self.anchor_text) :]

    def token_bytes(self, token_id: int) -> bytes:
        """One token's own bytes, whole even where its text is part of a character."""
        if not self.is_known(token_id):
            return b""
        byte = self._fallback.get(token_id)
        if byte is not None:
            return bytes([byte])
        if self._byte_level and token_id not in self._special:
            characters = self._fast.id_to_token(token_id) or ""
            if all(character in BYTE_OF_CHARACTER for character in characters):
                return bytes(BYTE_OF_CHARACTER[character] for character in characters)
        return self.token_text(token_id).encode()

    def is_special(self, token_id: int) -> bool:
        """Whether the token is a control token, which callers usually do not see."""
        return token_id in self._special

    def is_known(self, token_id: int) -> bool:
        """Whether the id names a token; a padded vocabulary has ids that name none."""
        return token_id >= 0 and self._fast.id_to_token(token_id) is not None

    def fallback_byte(self, token_id: int) -> int | None:
        """The byte a byte-fallback token stands for, or None for any other token."""
        return self._fallback.get(token_id)

    def render_chat(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, object]] | None = None,
        template_values: Mapping[str, object] | None = None,
        continues: bool = False,
    ) -> str:
        """The prompt the model's chat template makes of `messages`.

        It already holds the special tokens: encode it with `add_special_tokens=False`.
        Raises TemplateError when the model has no template or the template refuses.
        """
        if self._chat is None:
            raise TemplateError(
                "this model has no chat template",
                field="messages",
                remedy="Use /v1/completions or /generate, or serve a model with a chat template",
            )
        values = {**self._named_special, **(template_values or {})}
        return self._chat.render(
            messages,
            add_generation_prompt=add_generation_prompt,
            tools=tools,
            values=values,
            continues=continues,
        )

    def _special_ids(self, config: Mapping[str, object]) -> frozenset[int]:
        ids = {
            token_id
            for token_id, token in self._fast.get_added_tokens_decoder().items()
            if token.special
        }
        named = [value for value in self._named_special.values() if isinstance(value, str)]
        extra = config.get("additional_special_tokens")
        if isinstance(extra, list):
            named += [content for item in extra if (content := _content(item)) is not None]
        ids.update(
            token_id
            for token_id in (self._fast.token_to_id(token) for token in named)
            if token_id is not None
        )
        return frozenset(ids)

    def _fallback_bytes(self) -> dict[int, int]:
        found: dict[int, int] = {}
        for byte in range(256):
            token_id = self._fast.token_to_id(f"<0x{byte:02X}>")
            if token_id is not None:
                found[token_id] = byte
        return found

    def _find_anchor(self) -> tuple[tuple[int, ...], str]:
        """A token of plain text whose own text does not change when another follows it."""
        for text in ANCHOR_TEXTS:
            ids = self.encode(text, add_special_tokens=False)
            if not ids or ids[-1] in self._special or ids[-1] in self._fallback:
                continue
            anchor = (ids[-1],)
            own = self.decode_raw(anchor)
            if own and self.decode_raw([*anchor, *anchor]).startswith(own):
                return anchor, own
        return (), ""

    def _end_tokens(self, files: Mapping[str, str]) -> tuple[int, ...]:
        """End tokens: those of the generation config, else of the config, else of the tokenizer."""
        for name in ("generation_config.json", "config.json"):
            declared = _object_file(files, name).get("eos_token_id")
            ids = declared if isinstance(declared, list) else [declared]
            found = [token for token in cast("list[object]", ids) if isinstance(token, int)]
            if found:
                return tuple(found)
        named = self._named_special.get("eos_token")
        token_id = self._fast.token_to_id(named) if isinstance(named, str) else None
        return () if token_id is None else (token_id,)


def _byte_characters() -> dict[str, int]:
    """The characters by which byte-level vocabularies write bytes (those of GPT-2)."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in visible}
    hidden = [byte for byte in range(256) if byte not in set(visible)]
    table.update({chr(0x100 + position): byte for position, byte in enumerate(hidden)})
    return table


BYTE_OF_CHARACTER = _byte_characters()


def _object_file(files: Mapping[str, str], name: str) -> Mapping[str, object]:
    return json_object(files[name], name) if name in files else {}


def _content(token: object) -> str | None:
    """A token's text: configs write it bare or as an object with its flags."""
    if isinstance(token, str):
        return token
    if isinstance(token, dict):
        content = cast("dict[str, object]", token).get("content")
        return content if isinstance(content, str) else None
    return None


def _named_special(*sources: Mapping[str, object]) -> dict[str, object]:
    named: dict[str, object] = {}
    for source in sources:
        for name in NAMED_SPECIAL_TOKENS:
            content = _content(source.get(name))
            if content is not None:
                named.setdefault(name, content)
    return named


def _mentions(decoder: object, kind: str) -> bool:
    """Whether a decoder's description contains one of type `kind`, at any depth."""
    if isinstance(decoder, dict):
        entry = cast("dict[str, object]", decoder)
        return entry.get("type") == kind or any(_mentions(part, kind) for part in entry.values())
    if isinstance(decoder, list):
        return any(_mentions(part, kind) for part in cast("list[object]", decoder))
    return False


def _chat_template(files: Mapping[str, str], config: Mapping[str, object]) -> ChatTemplate | None:
    """The model's template: its own file first, then what tokenizer_config.json holds."""
    if "chat_template.jinja" in files:
        return ChatTemplate(files["chat_template.jinja"])
    declared = _object_file(files, "chat_template.json").get("chat_template")
    if declared is None:
        declared = config.get("chat_template")
    if isinstance(declared, str):
        return ChatTemplate(declared)
    if isinstance(declared, list):
        named: dict[str, str] = {}
        for item in cast("list[object]", declared):
            if isinstance(item, dict):
                entry = cast("dict[str, object]", item)
                named[str(entry.get("name"))] = str(entry.get("template"))
        if "default" in named:
            return ChatTemplate(named["default"], with_tools=named.get("tool_use"))
    return None
