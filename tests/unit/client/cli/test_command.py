"""The command `adex` against a real HTTP server on loopback."""

import io
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from adex.cli import main
from adex.cli.failure import CommandError, one_line, require_packages
from adex.testing import Answer, ScriptedServer

HELLO: dict[str, Any] = {"id": 1, "text": "Hello", "logprob": -0.5, "special": False}
END: dict[str, Any] = {"id": 2, "text": "</s>", "logprob": -0.5, "special": True}
DETAILS = {"finish_reason": "eos_token", "prompt_tokens": 4, "generated_tokens": 2, "seed": None}
STREAM = Answer.of_events(
    [
        {"index": 1, "token": HELLO, "generated_text": None, "details": None},
        {"index": 2, "token": END, "generated_text": "Hello", "details": DETAILS},
    ]
)
WHOLE = Answer.of_json({"generated_text": "Hello", "details": DETAILS})
CARDS = Answer.of_json(
    {
        "data": [
            {"id": "m", "parent": None},
            {"id": "tone", "parent": "m", "root": "/a/tone", "tier": "host", "bytes": 2048},
            {"id": "rude", "parent": "m", "root": "/a/rude", "rank": 8},
        ]
    }
)
INFO = Answer.of_json({"model_id": "m"})


def said(text: str) -> Answer:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return Answer.of_events([{"choices": [choice]}], done=True)


def run(server: ScriptedServer, *arguments: str) -> int:
    command, *rest = arguments
    return main([command, "--url", server.url, *rest])


@pytest.mark.parametrize("how", ["--stream", "--no-stream"])
def test_generate_writes_the_text_and_nothing_else(
    how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with ScriptedServer({"/generate_stream": STREAM, "/generate": WHOLE}) as server:
        assert run(server, "generate", how, "--adapter-id", "tone", "--top-k", "3", "Hi") == 0
    assert capsys.readouterr() == ("Hello\n", "")
    assert server.asked[0].body["inputs"] == "Hi"
    assert server.asked[0].body["parameters"]["adapter_id"] == "tone"
    assert server.asked[0].body["parameters"]["top_k"] == 3


def test_every_flag_arrives_under_its_own_name(capsys: pytest.CaptureFixture[str]) -> None:
    numbers = {
        "max_new_tokens": 1,
        "min_new_tokens": 1,
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.5,
        "min_p": 0.1,
        "typical_p": 0.9,
        "repetition_penalty": 1.5,
        "frequency_penalty": 0.5,
        "presence_penalty": 0.25,
        "seed": 7,
        "truncate": 9,
        "top_n_tokens": 2,
    }
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in numbers.items()]
    flags += ["--stop", "a", "--stop", "b", "--stop-token-id", "5", "--logit-bias", '{"4": -1}']
    flags += ["--ignore-eos-token", "--do-sample", "--return-full-text"]
    flags += ["--adapter-id", "tone", "--adapter-source", "hub", "--api-token", "t"]
    with ScriptedServer({"/generate_stream": STREAM}) as server:
        assert run(server, "generate", *flags, "Hi") == 0
    assert server.asked[0].body["parameters"] == numbers | {
        "stop": ["a", "b"],
        "stop_token_ids": [5],
        "logit_bias": {"4": -1.0},
        "ignore_eos_token": True,
        "do_sample": True,
        "return_full_text": True,
        "adapter_id": "tone",
        "adapter_source": "hub",
        "api_token": "t",
        "details": True,
    }
    assert capsys.readouterr().out == "HiHello\n"


def test_generate_as_json_has_every_token(capsys: pytest.CaptureFixture[str]) -> None:
    with ScriptedServer({"/generate_stream": STREAM, "/generate": WHOLE}) as server:
        assert run(server, "generate", "--json", "Hi") == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [line["token"]["text"] for line in lines] == ["Hello", "</s>"]
        assert run(server, "generate", "--json", "--no-stream", "Hi") == 0
        assert json.loads(capsys.readouterr().out)["details"]["generated_tokens"] == 2


def test_a_dash_reads_the_prompt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("two\nlines\n"))
    with ScriptedServer({"/generate_stream": STREAM}) as server:
        assert run(server, "generate", "-") == 0
    assert server.asked[0].body["inputs"] == "two\nlines"
    assert capsys.readouterr().err == ""


def test_adapters_are_listed_with_what_the_server_tells(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tone = {"id": "tone", "tier": "host", "bytes": 2048, "pinned": "host", "digest": "d" * 64}
    rude = {"id": "rude", "tier": "device", "rank": 8, "pins": 1, "last_used_s": 90.0}
    with ScriptedServer({"/v1/adapters": Answer.of_json({"data": [tone, rude]})}) as server:
        assert run(server, "adapters", "list") == 0
        assert capsys.readouterr().out.splitlines() == [
            "adapter  tier    pinned  bytes    rank  used by  last used  digest",
            "rude     device                   8     1        2 min ago",
            "tone     host    host    2.0 KiB                            dddddddddddd",
        ]
        assert run(server, "adapters", "--json") == 0
        assert [card["id"] for card in json.loads(capsys.readouterr().out)] == ["tone", "rude"]


def test_adapters_are_acted_on_one_after_the_other_with_the_operators_key(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pinned = {"id": "tone", "tier": "device", "pinned": "device"}
    steps = [
        {"id": "tone", "tier": "host", "done": False},
        {"id": "tone", "tier": "device", "done": True, "adapter": pinned},
    ]
    with ScriptedServer({"/v1/adapters/pin": Answer.of_events(steps)}) as server:
        flags = ("--admin-key", "sesame", "--tier", "device", "--json")
        assert run(server, "adapters", "pin", "tone", "rude", *flags) == 0
    assert [asked.body["adapter_id"] for asked in server.asked] == ["tone", "rude"]
    assert server.asked[0].headers["authorization"] == "Bearer sesame"
    assert server.asked[0].body["tier"] == "device"
    shown = capsys.readouterr()
    assert [card["pinned"] for card in json.loads(shown.out)] == ["device", "device"]
    assert "pin tone" in shown.err


def test_flags_may_stand_among_the_names(capsys: pytest.CaptureFixture[str]) -> None:
    step = {"id": "a", "tier": "absent", "done": True, "adapter": {"id": "a", "tier": "absent"}}
    with ScriptedServer({"/v1/adapters/unload": Answer.of_events([step])}) as server:
        assert main(["adapters", "unload", "--url", server.url, "a", "--disk", "b"]) == 0
    assert [asked.body["adapter_id"] for asked in server.asked] == ["a", "b"]
    with pytest.raises(SystemExit):
        main(["adapters", "unload", "a", "--disc", "b"])
    assert "unrecognized arguments: --disc" in capsys.readouterr().err


@pytest.mark.parametrize("given", [("pin", "a", "--disk"), ("unload", "a", "--tier", "host")])
def test_a_flag_that_an_action_does_not_take_is_refused(
    given: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with ScriptedServer({}) as server:
        assert run(server, "adapters", *given) == 2
    assert f"{given[0]} takes no {given[2]}" in capsys.readouterr().err


def test_an_action_without_a_name_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with ScriptedServer({}) as server:
        assert run(server, "adapters", "pin") == 2
    assert "name the adapters to pin" in capsys.readouterr().err


def test_a_chat_switches_adapters_and_keeps_what_was_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = "hi\n/adapter rude\nand you?\n/adapters\n/reset\n/adapter\nagain\n/nonsense\n/quit\nx\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    talk = [said("Hello"), said("Fine"), said("Anew")]
    script: dict[str, Answer | list[Answer]] = {
        "/info": INFO,
        "/v1/models": CARDS,
        "/v1/chat/completions": talk,
    }
    with ScriptedServer(script) as server:
        assert run(server, "chat", "--adapter-id", "tone", "--system", "be kind") == 0
    asked = [request.body for request in server.asked if request.path.endswith("completions")]
    kind = {"role": "system", "content": "be kind"}
    assert [body.get("model") for body in asked] == ["tone", "rude", None]
    assert asked[1]["messages"] == [
        kind,
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "and you?"},
    ]
    assert asked[2]["messages"] == [kind, {"role": "user", "content": "again"}]
    out, err = capsys.readouterr()
    assert "tone> Hello\n" in out
    assert "rude> Fine\n" in out
    assert "* rude" in out
    assert "base> Anew\n" in out
    assert "there is no /nonsense" in err


def test_a_turn_that_failed_does_not_end_the_chat_and_is_not_remembered(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo\n"))
    missing = Answer.of_json({"error": "no `x`", "error_type": "adapter_not_found"}, status=404)
    with ScriptedServer({"/info": INFO, "/v1/chat/completions": [missing, said("2")]}) as server:
        assert run(server, "chat") == 0
    assert server.asked[-1].body["messages"] == [{"role": "user", "content": "two"}]
    assert "adex: no `x` (`adex adapters` lists" in capsys.readouterr().err


def test_an_error_of_the_server_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    told = {"error": "`top_p` must be <= 1.\nSend less", "error_type": "validation"}
    script = {"/generate_stream": Answer.of_json(told, status=422)}
    with ScriptedServer(script) as server:
        assert run(server, "generate", "Hi") == 1
    assert capsys.readouterr() == ("", "adex: `top_p` must be <= 1. Send less\n")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["generate"], "the following arguments are required: PROMPT"),
        (["generate", "--top-k", "many", "Hi"], "invalid int value: 'many'"),
        (["nonsense"], "invalid choice: 'nonsense'"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("adex: ")
    assert told in line


def test_a_bias_that_is_no_mapping_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in ("[1]", "{", '{"x": 1}', '{"1": []}'):
        assert main(["generate", "--logit-bias", wrong, "Hi"]) == 2
        assert "--logit-bias" in capsys.readouterr().err


def test_a_wrong_address_is_refused_with_the_right_form(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["adapters", "--url", "localhost"]) == 1
    assert "http://127.0.0.1:8080" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    with ScriptedServer({"/v1/models": CARDS}) as server:
        command = [sys.executable, "-m", "adex", "adapters", "--url", server.url]
        done = subprocess.run(
            f"{' '.join(command)} | true; exit ${{PIPESTATUS[0]}}",
            shell=True,
            executable="/bin/bash",
            capture_output=True,
            text=True,
            env=dict(os.environ),
        )
    assert "Traceback" not in done.stderr


def test_a_missing_package_is_named_with_what_installs_it() -> None:
    with pytest.raises(CommandError) as caught:
        require_packages("worker", ["json", "surely_not_installed"])
    assert one_line(caught.value.what, caught.value.remedy) == (
        "adex: the worker needs the package 'surely_not_installed', which is not installed "
        "(pip install 'adex[all]')"
    )


@pytest.mark.parametrize("process", ["worker", "scheduler"])
def test_the_processes_get_their_own_flags(process: str, stage_environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "adex", process, "--port", "x"],
        capture_output=True,
        text=True,
        env=stage_environment | {process.upper(): "refuse"},
    )
    assert (done.returncode, done.stdout) == (2, f"{process} says hello\n")


def test_a_line_holds_the_remedy_once_and_no_line_break() -> None:
    assert one_line("a\nb.", "Send c.") == "adex: a b (send c)"
    assert one_line("a. Send c.", "Send c") == "adex: a. Send c"
    assert one_line("a", "HTTP it is") == "adex: a (HTTP it is)"


def test_a_flag_that_a_command_does_not_know_leads_to_its_own_help(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--max-loras", "4"])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told == "adex: unrecognized arguments: --max-loras 4 (`adex serve --help` tells more)\n"
