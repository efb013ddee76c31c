"""The pages for callers and operators name every route, field, code, flag and metric there is."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from adex.cli import main as adex_main
from adex_proto.errors import ERRORS_BY_CODE
from adex_proto.v1 import generate_pb2
from adex_scheduler.__main__ import main as scheduler_main
from adex_scheduler.front.ports import FrontOptions, Serving
from adex_scheduler.front.rest import create_app
from adex_scheduler.front.rpc_call import status_of as rpc_status_of
from adex_scheduler.front.schema_openai import HARMLESS
from adex_scheduler.front.statuses import Family, status_of
from adex_scheduler.front.tenants import Directory
from adex_worker.__main__ import main as worker_main

DOCS = Path(__file__).parents[2] / "docs"
API = (DOCS / "api.md").read_text("utf-8")
OPERATIONS = (DOCS / "operations.md").read_text("utf-8")


def named(word: str, page: str) -> bool:
    """Whether the page has the word in code type, alone or first."""
    return re.search(rf"`(?:[A-Z]+ )?{re.escape(word)}(?![\w-])", page) is not None


def routes() -> list[str]:
    nothing: Any = None
    options = FrontOptions("m", "0")
    serving = Serving.over(nothing, nothing, Directory(("m",)), nothing, options)
    app: web.Application = create_app(serving)
    return sorted({resource.canonical for resource in app.router.resources()})


@pytest.mark.parametrize("route", routes())
def test_every_route_is_named(route: str) -> None:
    assert named(route, API), f"add {route} to docs/api.md"


def test_every_parameter_is_named() -> None:
    parameters = [field.name for field in generate_pb2.GenerateParameters.DESCRIPTOR.fields]
    missing = [name for name in (*parameters, *HARMLESS) if not named(name, API)]
    assert not missing, f"add to docs/api.md: {missing}"


@pytest.mark.parametrize("code", ERRORS_BY_CODE)
def test_every_error_stands_there_with_its_statuses(code: str) -> None:
    error = ERRORS_BY_CODE[code]("x")
    statuses = [status_of(error, Family.TGI), status_of(error, Family.OPENAI)]
    ends = " | ".join(["", *map(str, statuses), rpc_status_of(error).name, ""]).strip()
    rows = [line for line in API.splitlines() if line.startswith(f"| `{code}` |")]
    assert [row.endswith(ends) for row in rows] == [True], f"docs/api.md: {code} {ends}"


def adex_serve(arguments: list[str]) -> object:
    return adex_main(["serve", *arguments])


@pytest.mark.parametrize("main", [adex_serve, scheduler_main, worker_main])
def test_every_flag_is_named(
    main: Callable[[list[str]], object], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    flags = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out)) - {"--help"}
    assert len(flags) > 10
    missing = sorted(flag for flag in flags if not named(flag, OPERATIONS))
    assert not missing, f"add to docs/operations.md: {missing}"


# Where its two processes find each other is `adex serve`'s own to say.
BETWEEN_THE_PROCESSES = {"--listen", "--worker"}


@pytest.mark.parametrize("main", [scheduler_main, worker_main])
def test_serve_takes_every_flag_of_its_processes(
    main: Callable[[list[str]], object], capsys: pytest.CaptureFixture[str]
) -> None:
    def flags_of(what: Callable[[list[str]], object]) -> set[str]:
        with pytest.raises(SystemExit):
            what(["--help"])
        return set(re.findall(r"^ +(--[a-z][a-z0-9-]+)", capsys.readouterr().out, re.MULTILINE))

    served = flags_of(adex_serve)
    assert len(served) > 30
    missing = flags_of(main) - BETWEEN_THE_PROCESSES - served
    assert not missing, f"add to client/adex/cli/passed_flags.py: {sorted(missing)}"


def test_every_metric_is_named(metric_names: set[str]) -> None:
    assert len(metric_names) > 30
    missing = sorted(name for name in metric_names if not named(name, OPERATIONS))
    assert not missing, f"add to docs/operations.md: {missing}"


def test_every_metric_that_is_named_is_there(metric_names: set[str]) -> None:
    stale = set(re.findall(r"`((?:adex|vllm|tgi|lorax)[_:][a-z_]+)`", OPERATIONS)) - metric_names
    assert not stale, f"remove from docs/operations.md: {sorted(stale)}"
