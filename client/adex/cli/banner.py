"""What to try first, told once the server is ready."""

import itertools
import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adex.cli.passed_flags import API_KEY
from adex.cli.serve_options import ServeOptions

_DEFAULT_URL = "http://127.0.0.1:8080"
_SAMPLE_FILES = (Path("demo/samples.json"),)
_SAMPLE_BYTES_MAX = 2**20
_FOLDERS_READ_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt, the adapter it suits, and what that one answers where it is known."""

    prompt: str
    adapter: str | None = None
    answer: str | None = None


def local_url(host: str, port: int) -> str:
    """The address at which a server that listens at `host` is reached from here."""
    near = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104
    return f"http://[{near}]:{port}" if ":" in near else f"http://{near}:{port}"


def choose_samples(options: ServeOptions) -> list[Sample]:
    """The demonstration's own samples whose adapters are served, else the first adapter found."""
    served = adapter_names(options)
    samples = [each for each in _samples() if each.adapter is None or each.adapter in served]
    return samples or [Sample("Once upon a time", served[0] if served else None)]


def adapter_names(options: ServeOptions) -> list[str]:
    """The names under which local adapters are served: the modules, then the roots' folders."""
    names = [name for name, _ in options.lora_modules]
    for root in options.local_adapter_roots:
        names += sorted(
            folder.name
            for _, folder in zip(range(_FOLDERS_READ_MAX), root.iterdir(), strict=False)
            if (folder / "adapter_config.json").is_file()
        )
    return list(dict.fromkeys(names))


def _samples() -> list[Sample]:
    """The samples of the demonstration; none where its file is missing or not ours."""
    for path in _SAMPLE_FILES:
        try:
            if path.stat().st_size > _SAMPLE_BYTES_MAX:
                continue
            read: Any = json.loads(path.read_text(encoding="utf-8"))
            return [
                Sample(str(item["prompt"]), item.get("adapter"), item.get("answer"))
                for item in read
            ]
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            continue
    return []


def commands_to_try(samples: Sequence[Sample], url: str) -> list[str]:
    """Three commands, ready for a shell, over as many samples as there are."""
    asked, generated, chatted = (samples[turn % len(samples)] for turn in range(3))
    parameters: dict[str, object] = {"max_new_tokens": 64}
    if asked.adapter is not None:
        parameters = {"adapter_id": asked.adapter} | parameters
    body = json.dumps({"inputs": asked.prompt, "parameters": parameters}, ensure_ascii=False)
    where = [] if url == _DEFAULT_URL else ["--url", url]
    json_header = "content-type: application/json"
    adex = _program()
    return [
        shlex.join(["curl", f"{url}/generate", "-H", json_header, "-d", body]),
        shlex.join([adex, "generate", *where, *_adapter_flag(generated), generated.prompt]),
        # A chat is sampled unless told otherwise, and a first impression should be repeatable.
        shlex.join([adex, "chat", *where, *_adapter_flag(chatted), "--temperature", "0"]),
    ]


def _adapter_flag(sample: Sample) -> list[str]:
    return [] if sample.adapter is None else ["--adapter-id", sample.adapter]


def _program() -> str:
    """How this command is called here: by its name where the shell finds it, else by its path."""
    called = Path(sys.argv[0])
    if called.name != "adex" or shutil.which("adex"):
        return "adex"
    return str(called)


def banner(
    options: ServeOptions, url: str, adapters: int | None, *, keyed: bool = False
) -> Sequence[str]:
    """The lines that tell the server is ready; the first is the headline.

    `keyed`: it asks for a key, which none of these lines tells.
    """
    samples = choose_samples(options)
    counted = "" if adapters is None else f", {adapters} adapter{'' if adapters == 1 else 's'}"
    first = f"Try, with one of its keys in {API_KEY}:" if keyed else "Try:"
    lines = [f"adex is ready at {url} ({options.model_id}{counted})", first]
    curl, *others = commands_to_try(samples, url)
    if keyed:
        curl += f' -H "authorization: Bearer ${API_KEY}"'
    commands = [curl, *others]
    for sample, command in zip(itertools.cycle(samples), commands, strict=False):
        lines.append(f"  {command}")
        if sample.answer is not None:
            lines.append(f"  # {sample.prompt} -> {sample.answer}")
    lines.append("Ctrl-C ends it; running requests finish first.")
    return lines
