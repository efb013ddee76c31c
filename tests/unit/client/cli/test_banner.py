"""What a ready server suggests can be pasted into a shell."""

import argparse
import json
import shlex
from pathlib import Path

import pytest

from adex.cli.banner import Sample, banner, choose_samples, commands_to_try, local_url
from adex.cli.serve_options import ServeOptions, add_flags, read_options


@pytest.fixture
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("sql", "redact", "no-adapter"):
        (tmp_path / "roots" / name).mkdir(parents=True)
        if name != "no-adapter":
            (tmp_path / "roots" / name / "adapter_config.json").touch()
    return tmp_path / "roots"


def options(*arguments: str) -> ServeOptions:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return read_options(parser.parse_args(["--model-id", "m", *arguments]), {})


def test_the_first_adapter_of_the_roots_is_suggested(roots: Path) -> None:
    assert choose_samples(options("--local-adapter-root", str(roots)))[0].adapter == "redact"


def test_a_module_is_suggested_before_a_root(roots: Path) -> None:
    given = options("--local-adapter-root", str(roots), "--lora-modules", f"x={roots / 'sql'}")
    assert choose_samples(given)[0].adapter == "x"


def test_a_sample_of_the_demonstration_is_suggested_where_its_adapter_is_served(
    roots: Path,
) -> None:
    samples = [{"adapter": name, "prompt": f"to {name}", "answer": "a"} for name in ("z", "sql")]
    (roots.parent / "demo").mkdir()
    (roots.parent / "demo" / "samples.json").write_text(json.dumps(samples))
    served = options("--local-adapter-root", str(roots))
    assert choose_samples(served) == [Sample("to sql", "sql", "a")]
    assert "  # to sql -> a" in banner(served, "http://h:1", 2)
    assert choose_samples(options())[0].adapter is None


@pytest.mark.parametrize("wrong", ["", "{", "7", "[7]", '[{"adapter": "sql"}]', "null"])
def test_samples_that_are_none_are_passed_over(roots: Path, wrong: str) -> None:
    (roots.parent / "demo").mkdir()
    (roots.parent / "demo" / "samples.json").write_text(wrong)
    assert choose_samples(options("--local-adapter-root", str(roots)))[0].adapter == "redact"


def test_the_commands_survive_a_shell() -> None:
    curl, generate, chat = commands_to_try([Sample('it\'s "$HOME"\n', "sql")], "http://h:1")
    words = shlex.split(curl)
    assert words[:2] == ["curl", "http://h:1/generate"]
    assert json.loads(words[-1])["inputs"] == 'it\'s "$HOME"\n'
    assert shlex.split(generate)[-1] == 'it\'s "$HOME"\n'
    assert shlex.split(chat)[:6] == ["adex", "chat", "--url", "http://h:1", "--adapter-id", "sql"]


def test_each_command_takes_a_sample_of_its_own_where_there_are_enough() -> None:
    samples = [Sample("p", name) for name in ("a", "b", "c")]
    curl, generate, chat = map(shlex.split, commands_to_try(samples, "http://h:1"))
    assert json.loads(curl[-1])["parameters"]["adapter_id"] == "a"
    assert generate[generate.index("--adapter-id") + 1] == "b"
    assert chat[chat.index("--adapter-id") + 1] == "c"


def test_the_default_address_need_not_be_told() -> None:
    assert commands_to_try([Sample("x")], "http://127.0.0.1:8080")[2] == "adex chat --temperature 0"


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("0.0.0.0", "http://127.0.0.1:8"),
        ("::", "http://[::1]:8"),
        ("10.0.0.7", "http://10.0.0.7:8"),
        ("localhost", "http://localhost:8"),
    ],
)
def test_a_server_that_listens_everywhere_is_reached_nearby(host: str, url: str) -> None:
    assert local_url(host, 8) == url


def test_where_keys_are_asked_for_the_command_sends_one_and_tells_none(roots: Path) -> None:
    given = options("--local-adapter-root", str(roots), "--api-key", "secret")
    told = "\n".join(banner(given, "http://127.0.0.1:8080", 2, keyed=True))
    assert "Try, with one of its keys in ADEX_API_KEY:" in told
    assert '-H "authorization: Bearer $ADEX_API_KEY"' in told
    assert "secret" not in told
