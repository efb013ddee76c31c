"""What the pages show a reader to type gives what they show to come out."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
PAGES = ("README.md", "docs/api.md")
SHOWN_AT = "http://localhost:8080"
SERVE_ENVIRONMENT = {"ADEX_ADMIN_KEY": "the-operators-own"}


def shell_examples(page: str) -> list[tuple[str, str]]:
    """(command, output) of every `$ command` in the page's code."""
    found: list[tuple[str, str]] = []
    for block in re.findall(r"^```\n(\$ .*?)^```$", page, re.MULTILINE | re.DOTALL):
        for example in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, output = re.split(r"(?<!\\)\n", example, maxsplit=1)
            found.append((command, output.strip()))
    return found


def python_examples(page: str) -> list[tuple[str, str]]:
    """(program, output) of every Python block that is followed by a block of output."""
    found = re.findall(
        r"^```python\n(.*?)^```\n(?:^```\n(.*?)^```$)?", page, re.MULTILINE | re.DOTALL
    )
    return [(program, output.strip()) for program, output in found if output]


def but_for_digits(text: str) -> str:
    """Log probabilities end in digits that differ from one processor to another."""
    return re.sub(r"-?\d+\.\d+(e-\d+)?", "0.0", text)


EXAMPLES = [
    pytest.param(example, id=f"{name}:{example[0][:60]}")
    for name in PAGES
    for examples in (shell_examples, python_examples)
    for example in examples((ROOT / name).read_text("utf-8"))
]


def test_the_pages_show_examples() -> None:
    assert len(EXAMPLES) >= 9


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_gives_what_the_page_shows(example: tuple[str, str], server: Any) -> None:
    text, output = example
    text = text.replace("Client()", f"Client({server.url!r})").replace(SHOWN_AT, server.url)
    if text.startswith("curl"):
        if shutil.which("curl") is None:
            pytest.skip("needs curl")
        command = ["sh", "-c", text.replace(SHOWN_AT.removeprefix("http://"), server.url)]
    elif text.startswith(".venv/bin/adex"):
        command = ["sh", "-c", text.replace(".venv/bin/adex", f"'{sys.executable}' -m adex")]
    else:
        command = [sys.executable, "-c", text]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **SERVE_ENVIRONMENT, "ADEX_URL": server.url},
        cwd=server.adapter_root,
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.strip().replace(f"{ROOT}/", "")
    assert but_for_digits(said) == but_for_digits(output)
