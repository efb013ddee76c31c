"""The description of the REST door is true: of its routes, its bodies and its answers."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from adex_scheduler.front.rest import create_app


async def description(door: Any) -> Any:
    async with httpx.AsyncClient(base_url=door.url, timeout=10) as client:
        return (await client.get("/openapi.json")).json()


async def test_every_route_is_described(door: Any) -> None:
    described = await description(door)
    routes = {
        (route.resource.canonical, route.method.lower())
        for route in create_app(door.serving).router.routes()
        if route.resource is not None
        and route.method != "HEAD"
        # Pages for browsers are no interface for programs.
        and not route.resource.canonical.startswith("/ui")
    }
    assert routes == {
        (path, method) for path, methods in described["paths"].items() for method in methods
    }
    assert described["openapi"] == "3.1.0"


async def test_every_schema_is_one_and_every_default_fits_its_field(door: Any) -> None:
    described = await description(door)
    for name, schema in described["components"]["schemas"].items():
        jsonschema.Draft202012Validator.check_schema(schema)
        for field, one in schema["properties"].items():
            if "default" in one:
                jsonschema.validate(one["default"], one)
            assert name.endswith("Error") or not one or one.get("description"), (name, field)


@pytest.mark.slow
async def test_schemathesis_finds_nothing(door: Any, tmp_path: Path) -> None:
    command = [
        str(Path(sys.executable).parent / "schemathesis"),
        "run",
        f"{door.url}/openapi.json",
        "--checks=all",
        # Prompt and output share a context, which no schema can say.
        "--exclude-checks=positive_data_acceptance",
        "--phases=coverage,fuzzing",
        "--max-examples=5",
        "--continue-on-failure",
        "--seed=1",
        "--no-color",
    ]
    environment = {**os.environ, "HYPOTHESIS_STORAGE_DIRECTORY": str(tmp_path / "hypothesis")}
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=tmp_path,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(300):
        told, _ = await process.communicate()
    assert process.returncode == 0, told.decode()[-6000:]
    codes = {code for _, code in door.meters.answered}
    assert "internal" not in codes
    assert {"ok", "validation"} <= codes
    assert door.serving.gate.running == 0
