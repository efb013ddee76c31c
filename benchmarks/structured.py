"""Structured output: whether every text is valid, and what it costs the batch.

    python benchmarks/structured.py [--texts 200] [--rounds 7] [--streams 32] [--part validity|cost]

Validity: the demonstration model, the base and each adapter, as a completion and as a chat; so many
sampled texts of each under schemas of several kinds, parsed and judged by jsonschema.

Cost: the benchmark's model with a byte-level vocabulary of the same size, a batch in which no
row, every other row or every row is under a schema, in turn, round by round. All rows write the
same number of tokens. Tokens for each second of the server's processor time are told besides: what
else the machine does changes them less. Prints the tables, and writes them to benchmarks/results/
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import jsonschema
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from fixture import VOCABULARY, adapter_name, prepare
from serve import HERE, add_server_flags, result_path, serving, where_and_when

ROOT = HERE.parent
NEW_TOKENS = 64
ADAPTERS = 8
AT_ONCE = 32
END = "w1"
TEXTS_MAX_TOKENS = 600

NAME = {"type": "string", "minLength": 1, "maxLength": 12}
# Every text of these ends: strings and lists are bounded.
SCHEMAS: dict[str, dict[str, Any]] = {
    "record": {
        "type": "object",
        "properties": {
            "name": NAME,
            "age": {"type": "integer", "minimum": 0, "maximum": 130},
            "mood": {"enum": ["good", "bad", "indifferent"]},
            "member": {"type": "boolean"},
        },
        "required": ["name", "age", "mood", "member"],
        "additionalProperties": False,
    },
    "list": {
        "type": "array",
        "items": {"anyOf": [{"type": "number", "minimum": 0, "maximum": 99}, {"type": "null"}]},
        "minItems": 1,
        "maxItems": 5,
    },
    "tree": {
        "$ref": "#/$defs/node",
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "label": {"type": "string", "pattern": "^[a-z]{1,6}$"},
                    "parts": {"type": "array", "items": {"$ref": "#/$defs/leaf"}, "maxItems": 2},
                },
                "required": ["label", "parts"],
                "additionalProperties": False,
            },
            "leaf": {
                "type": "object",
                "properties": {"n": {"type": "integer", "minimum": -9, "maximum": 9}},
                "required": ["n"],
                "additionalProperties": False,
            },
        },
    },
    "formats": {
        "type": "object",
        "properties": {
            "day": {"type": "string", "format": "date"},
            "id": {"type": "string", "format": "uuid"},
            "step": {"type": "integer", "minimum": 0, "maximum": 99, "multipleOf": 3},
            "kind": {"const": 'ä "quoted" 🙂'},
        },
        "required": ["day", "id", "kind"],
        "additionalProperties": False,
    },
}
# Longer than any row writes.
LONG = {
    "type": "array",
    "minItems": 200,
    "maxItems": 400,
    "items": {
        "type": "object",
        "properties": {
            "id": {"type": "integer"},
            "title": {"type": "string", "maxLength": 60},
            "state": {"enum": ["open", "closed", "pending"]},
            "score": {"type": "number"},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 4},
        },
        "required": ["id", "title", "state", "score", "tags"],
        "additionalProperties": False,
    },
}
MODES = {"no row": 0, "every other row": 2, "every row": 1}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_server_flags(parser)
    parser.add_argument("--texts", type=int, default=200, help="of each adapter and way of asking")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--part", choices=["validity", "cost"], help="one part alone")
    parser.add_argument("--no-write", action="store_true", help="print, but write no result file")
    return parser.parse_args()


async def _reply(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> Any:
    route = "chat/completions" if "messages" in body else "completions"
    async with session.post(f"{url}/v1/{route}", json=body) as response:
        assert response.status == 200, await response.text()
        return await response.json()


def _fault(reply: Any, schema: dict[str, Any]) -> str:
    """What is wrong with a text, or nothing."""
    [choice] = reply["choices"]
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    if choice["finish_reason"] != "stop":
        return f"ended by {choice['finish_reason']}: {text[-60:]!r}"
    try:
        checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
        jsonschema.validate(json.loads(text), schema, format_checker=checker)
    except (ValueError, jsonschema.ValidationError) as error:
        return f"{str(error).splitlines()[0]}: {text!r}"
    return ""


async def _validity(url: str, texts: int) -> list[tuple[str, str, int, list[str]]]:
    """(adapter, way of asking, texts, faults) of each."""
    prompts = [sample["prompt"] for sample in json.loads((ROOT / "demo/samples.json").read_text())]
    adapters = ["", *sorted(folder.name for folder in (ROOT / "demo/adapters").iterdir())]
    gate = asyncio.Semaphore(AT_ONCE)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask(adapter: str, chat: bool, number: int) -> str:
            schema = list(SCHEMAS.values())[number % len(SCHEMAS)]
            prompt = prompts[number % len(prompts)]
            body: dict[str, Any] = {"messages": [{"role": "user", "content": prompt}]}
            if not chat:
                body = {"prompt": prompt}
            body |= {"seed": number, "max_tokens": TEXTS_MAX_TOKENS} | (
                {"model": adapter} if adapter else {}
            )
            named = {"name": "text", "schema": schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
            async with gate:
                return _fault(await _reply(session, url, body), schema)

        found = []
        for adapter in adapters:
            for way, chat in (("completion", False), ("chat", True)):
                faults = await asyncio.gather(*(ask(adapter, chat, n) for n in range(texts)))
                found.append((adapter or "(base)", way, texts, [f for f in faults if f]))
        return found


def _validity_table(found: list[tuple[str, str, int, list[str]]]) -> str:
    lines = ["| adapter | asked as | texts | valid |", "| --- | --- | --- | --- |"]
    for adapter, way, texts, faults in found:
        lines.append(f"| {adapter} | {way} | {texts} | {100 * (1 - len(faults) / texts):.1f} % |")
        lines += [f"    {fault}" for fault in faults[:3]]
    return "\n".join(lines)


def _byte_level(model: Path, folder: Path) -> Path:
    """The model's weights with a byte-level vocabulary of their size, learnt from our own pages."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(model, folder, symlinks=False)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["w0", END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pages = [*ROOT.glob("**/*.md"), *(ROOT / "scheduler").glob("**/*.py")]
    tokenizer.train([str(page) for page in pages if ".venv" not in page.parts], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def _processor_s(pid: int) -> float:
    """Seconds of processor time that all descendants of a process have used."""
    total = 0.0
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            ticks = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[11:13]
            total += sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK") + _processor_s(child)
    return total


async def _round(url: str, streams: int, every: int, turn: int) -> tuple[float, float]:
    """(output tokens per second, per second of the server's processor time) of one batch.

    Row k is under the schema where `every` divides it.
    """
    chance = random.Random(turn)
    done = 0
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def row(number: int) -> None:
            nonlocal done
            body: dict[str, Any] = {
                "prompt": [chance.randrange(2, VOCABULARY) for _ in range(64)],
                "model": adapter_name(number % ADAPTERS),
                "max_tokens": NEW_TOKENS,
                "seed": number,
            }
            if every and number % every == 0:
                body["response_format"] = {"type": "json_object", "schema": LONG}
            else:
                body["ignore_eos"] = True
            reply = await _reply(session, url, body)
            written = reply["usage"]["completion_tokens"]
            assert written == NEW_TOKENS, reply
            done += written

        started_s, used_s = time.perf_counter(), _processor_s(os.getpid())
        await asyncio.gather(*(row(number) for number in range(streams)))
        took_s = time.perf_counter() - started_s
        return done / took_s, done / (_processor_s(os.getpid()) - used_s)


async def _cost(url: str, options: argparse.Namespace) -> dict[str, list[tuple[float, float]]]:
    for every in MODES.values():
        await _round(url, options.streams, every, turn=-1)
    rates: dict[str, list[tuple[float, float]]] = {mode: [] for mode in MODES}
    for turn in range(options.rounds):
        for mode, every in _turned(turn):
            rates[mode].append(await _round(url, options.streams, every, turn))
    return rates


def _turned(turn: int) -> Iterator[tuple[str, int]]:
    """All modes, each time another one first."""
    modes = list(MODES.items())
    first = turn % len(modes)
    yield from (*modes[first:], *modes[:first])


def _cost_table(rates: dict[str, list[tuple[float, float]]]) -> str:
    lines = [
        "| under a schema | tokens/s | to no row | tokens per processor second | to no row |",
        "| --- | --- | --- | --- | --- |",
    ]
    for mode, found in rates.items():
        cells: list[str] = []
        for measure in (0, 1):
            ours = [rate[measure] for rate in found]
            plain = [rate[measure] for rate in rates["no row"]]
            # Round by round, so that a busy minute of the machine falls on both.
            ratio = statistics.median(a / b for a, b in zip(ours, plain, strict=True))
            cells += [f"{statistics.median(ours):.0f} ({min(ours):.0f} to {max(ours):.0f})"]
            cells += [f"{ratio:.3f}"]
        lines.append(f"| {mode} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Serve, ask, judge, print and write."""
    options = _options()
    options.work.mkdir(parents=True, exist_ok=True)
    parts = ["# Structured output", where_and_when(options.dtype)]
    if options.part != "cost":
        with serving(ROOT / "demo/model", ROOT / "demo/adapters", options) as url:
            found = asyncio.run(_validity(url, options.texts))
        about = (
            f"The demonstration model, sampled at temperature 1, {AT_ONCE} texts at a time, under"
        )
        parts.append(
            f"## Validity\n{about} {len(SCHEMAS)} schemas in turn.\n\n{_validity_table(found)}"
        )
        print(parts[-1], flush=True)
    if options.part != "validity":
        model, adapters = prepare(options.work, ADAPTERS, options.dtype)
        folder = _byte_level(model, options.work / f"byte-level-{options.dtype}")
        with serving(folder, adapters, options) as url:
            rates = asyncio.run(_cost(url, options))
        about = f"{options.streams} rows at a time over {ADAPTERS} adapters, 64 tokens in and out,"
        about += f" sampled; {options.rounds} rounds, the modes in turn."
        parts.append(f"## Cost\n{about}\n\n{_cost_table(rates)}")
        print(parts[-1])
    if not options.no_write:
        path = result_path("structured", options.dtype)
        path.write_text("\n\n".join(parts) + "\n")
        print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
