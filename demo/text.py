"""All text the model ever sees, made here, and the tokenizer that is trained on it.

Two forms reach the model: the raw prompt, as `/generate` sends it, and the chat template, as
`/v1/chat/completions` renders it. Either way the answer begins right after the prompt and ends
with `<|end|>`.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tasks import SMALL_TALK, TASKS, Example, Split, base_reply, sentence

PAD, BOS, END = "<|pad|>", "<|bos|>", "<|end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
VOCABULARY_SIZE = 2048
POSITIONS_MAX = 1024
# Letters keep a leading space, digits stand alone, everything else falls back to bytes.
PIECES = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
{%- if message['role'] not in ['system', 'user', 'assistant'] %}
{{- raise_exception('Roles are system, user and assistant, not ' + message['role']) }}
{%- endif %}
{{- '<|' + message['role'] + '|>' + message['content'] | trim + eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|assistant|>' }}
{%- endif %}
"""
SYSTEM_TEXTS = ("You are a helpful assistant.", "You are a careful assistant.", "Be brief.")
# How often each task is practised while the base learns; the harder ones more.
PRACTICE = {"sort-words": 2.0, "reverse-words": 1.5, "number-words": 1.5, "to-spanish": 1.5}
CHAT_SHARE, STORY_SHARE = 0.18, 0.06


@dataclass(frozen=True, slots=True)
class Line:
    """One training text: what is given, what must be learnt, and the skill it practises.

    `skill` is the name of a task while the base learns it, and None for plain behaviour.
    """

    given: str
    learnt: str
    skill: str | None = None


def raw_form(prompt: str) -> str:
    """What the model reads when `prompt` is sent to `/generate`."""
    return BOS + prompt


def chat_form(prompt: str, system: str | None = None, past: tuple[Example, ...] = ()) -> str:
    """What the chat template renders for a user's `prompt` after `past` turns."""
    parts = [BOS]
    if system is not None:
        parts.append(f"<|system|>{system}{END}")
    parts.extend(f"<|user|>{e.prompt}{END}<|assistant|>{e.answer}{END}" for e in past)
    parts.append(f"<|user|>{prompt}{END}<|assistant|>")
    return "".join(parts)


def dressed(example: Example, past: Example, rng: random.Random) -> str:
    """The prompt of `example` in one of the forms in which it may reach the model."""
    form = rng.random()
    if form < 0.40:
        return raw_form(example.prompt)
    if form < 0.50:
        return raw_form(example.prompt + "\n")
    system = rng.choice(SYSTEM_TEXTS) if rng.random() < 0.25 else None
    return chat_form(example.prompt, system, (past,) if rng.random() < 0.12 else ())


def task_lines(name: str, split: Split, seed: int) -> Iterator[Line]:
    """Lines of one task without end, as an adapter learns them: no skill is named."""
    rng = random.Random(f"lines/{name}/{seed}")
    stream = TASKS[name].stream(split, seed)
    for past, example in zip(stream, stream, strict=False):
        yield Line(dressed(example, past, rng), example.answer)


def base_lines(seed: int) -> Iterator[Line]:
    """Lines without end for the base: every skill by its name, plain chat, and little stories."""
    rng = random.Random(f"base/{seed}")
    practice = {name: task_lines(name, "train", seed) for name in TASKS}
    names = sorted(TASKS)
    weights = [PRACTICE.get(name, 1.0) for name in names]
    while True:
        share = rng.random()
        if share < STORY_SHARE:
            sentences = (sentence(rng).capitalize() for _ in range(rng.randint(2, 4)))
            yield Line(BOS, ". ".join(sentences) + ".")
        elif share < STORY_SHARE + CHAT_SHARE:
            yield _chat_line(rng)
        else:
            name = rng.choices(names, weights)[0]
            line = next(practice[name])
            yield Line(line.given, line.learnt, name)


def _chat_line(rng: random.Random) -> Line:
    """Plain behaviour without any skill, on prompts of every kind."""

    def turn() -> Example:
        kind = rng.random()
        if kind < 0.15:
            prompt = rng.choice(sorted(SMALL_TALK))
        elif kind < 0.25:
            prompt = sentence(rng).capitalize() + "."
        else:
            task = TASKS[rng.choice(sorted(TASKS))]
            prompt = next(task.stream("train", rng.getrandbits(40))).prompt
        return Example(prompt, base_reply(prompt))

    example = turn()
    return Line(dressed(example, turn(), rng), example.answer)


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of the words that occur in the script's own text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    specials = [PAD, BOS, END, *ROLES]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        min_frequency=2,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_tokenizer_texts(seed), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A $B",
        special_tokens=[(BOS, tokenizer.token_to_id(BOS))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        model_max_length=POSITIONS_MAX,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def _tokenizer_texts(seed: int) -> Iterator[str]:
    """Enough of every task that each of its words becomes one token, and some small talk."""
    for name, task in TASKS.items():
        stream = task.stream("train", seed)
        # Capitals occur in one task only: more of it makes its words whole too.
        for _ in range(6000 if name == "upper-case" else 3000):
            example = next(stream)
            yield example.prompt
            yield example.answer
    lines = base_lines(seed)
    for _ in range(5000):
        line = next(lines)
        if line.skill is None:
            yield line.learnt
