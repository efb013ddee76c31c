"""`adex serve`: a worker and a scheduler, started together, watched, and ended together."""

import argparse
import asyncio
import contextlib
import json
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from adex.aio import AsyncClient
from adex.cli.banner import banner, local_url
from adex.cli.child import Child
from adex.cli.failure import EXIT_USAGE, CommandError, require_packages
from adex.cli.passed_flags import API_KEY, unknown_variables
from adex.cli.serve_options import VARIABLES, ServeOptions, child_environment, read_options
from adex.cli.supervisor import Role, Supervisor
from adex.cli.terminal import Terminal, bar
from adex.errors import AdexError, ServerUnreachable

WORKER_NEEDS = ("adex_worker", "torch", "grpc", "safetensors")
SCHEDULER_NEEDS = ("adex_scheduler", "aiohttp", "grpc", "tokenizers")

_POLL_S = 0.5
_POLL_TIMEOUT_S = 5.0
# How the worker says how far it is, such as "loading weights: 10 of 38 tensors".
_COUNTED = re.compile(r": (\d{1,9}) of (\d{1,9}) ")
# Beyond the drain itself: to close connections.
_END_GRACE_S = 10.0
# A worker lets the step that runs end, for which it takes up to 30 s, and then frees its device.
_WORKER_END_S = 35.0
# A socket's path may have 107 bytes on Linux and 103 on macOS.
_SOCKET_PATH_BYTES_MAX = 100


def serve(flags: argparse.Namespace, terminal: Terminal) -> int:
    """Run until a signal comes; the exit code."""
    options = read_options(flags, os.environ)
    for name, meant in unknown_variables(os.environ, VARIABLES).items():
        hint = f"; did you mean {meant}?" if meant else ""
        terminal.remark(f"adex: {name} is set, and is no variable of this server{hint}")
    require_packages("worker", WORKER_NEEDS)
    require_packages("scheduler", SCHEDULER_NEEDS)
    options = replace(
        options,
        port=_bindable_port(options.host, options.port, "--port"),
        grpc_port=_bindable_port(options.host, options.grpc_port, "--grpc-port"),
    )
    folder = _private_folder()
    try:
        environment = child_environment(os.environ, flags)
        return asyncio.run(_run(options, environment, folder / "worker.sock", terminal))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _bindable_port(host: str, port: int, flag: str) -> int:
    """The port, or a free one for 0, having bound it once: better here than in the children."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise CommandError(
                f"cannot listen at {host} port {port}: {os.strerror(error.errno or 0)}",
                f"choose another address with --host or port with {flag}",
                EXIT_USAGE,
            ) from error
        return int(probe.getsockname()[1])


def _private_folder() -> Path:
    """A folder that only this user may enter, with a path short enough for a socket."""
    folder = Path(tempfile.mkdtemp(prefix="adex-"))
    if len(os.fsencode(folder / "worker.sock")) <= _SOCKET_PATH_BYTES_MAX:
        return folder
    folder.rmdir()
    return Path(tempfile.mkdtemp(prefix="adex-", dir="/tmp"))


async def _run(
    options: ServeOptions, environment: dict[str, str], worker_socket: Path, terminal: Terminal
) -> int:
    address = f"unix://{worker_socket}"
    voice = _Voice(terminal, for_machines=options.log_format == "json")
    # The last thing each child said, which tells how far it is.
    said: dict[str, str] = {}

    def role(name: str, module: str, arguments: list[str], end_s_max: float) -> Role:
        # Lines for machines name their process themselves.
        prefix = "" if voice.for_machines else terminal.styled(f"{name:>9} |", "dim") + " "

        def write(line: str) -> None:
            said[name] = line
            terminal.line(f"{prefix}{line}")

        async def start() -> Child:
            return await Child.start(
                name, module, arguments, environment=environment, write=_heedless(write)
            )

        return Role(name, start, end_s_max)

    supervisor = Supervisor(
        [
            role(
                "scheduler",
                "adex_scheduler",
                options.scheduler_arguments(address),
                options.drain_seconds + _END_GRACE_S,
            ),
            role("worker", "adex_worker", options.worker_arguments(address), _WORKER_END_S),
        ],
        tell=_heedless(voice.remark),
    )
    key = environment.get(API_KEY, "").split(",")[0].strip()
    greeting = asyncio.create_task(_greet_when_ready(options, key, said, voice))
    try:
        return await supervisor.run()
    finally:
        greeting.cancel()
        await asyncio.gather(greeting, return_exceptions=True)


def _heedless(write: Callable[[str], None]) -> Callable[[str], None]:
    """The writer for a server that must outlive whoever read its output."""

    def write_if_read(line: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            write(line)

    return write_if_read


class _Voice:
    """What `adex serve` says itself, beside its children; as they do, in JSON for machines."""

    def __init__(self, terminal: Terminal, *, for_machines: bool) -> None:
        self.for_machines = for_machines
        self._terminal = terminal

    def remark(self, line: str) -> None:
        """One line about the children."""
        if self.for_machines:
            self._terminal.line(_json_line("warning", line))
        else:
            self._terminal.remark(f"adex: {line}")

    def status(self, text: str) -> None:
        """What is awaited, which no machine reads."""
        if not self.for_machines:
            self._terminal.status(text)

    def greet(self, headline: str, rest: Sequence[str]) -> None:
        """That the server serves; for people, also what to try."""
        if self.for_machines:
            self._terminal.line(_json_line("info", headline))
            return
        self._terminal.line(self._terminal.styled(headline, "green"))
        for line in rest:
            self._terminal.line(line)


def _json_line(level: str, message: str) -> str:
    """One object with the fields that the children's have."""
    at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    told = {"time": at, "level": level, "logger": "adex.serve", "message": message}
    return json.dumps(told, ensure_ascii=False)


async def _greet_when_ready(
    options: ServeOptions, key: str, said: Mapping[str, str], voice: _Voice
) -> None:
    """Show what is awaited until the server serves, then what to try; `key` is one it knows."""
    url = local_url(options.host, options.port)
    status = _heedless(voice.status)
    began_s = time.monotonic()
    headers = {"Authorization": f"Bearer {key}"} if key else None
    async with AsyncClient(url, headers, timeout=_POLL_TIMEOUT_S, retries_max=0) as client:
        try:
            while True:
                waits_for = await _what_is_missing(client, options.model_id, said)
                if waits_for is None:
                    break
                status(f"waiting for {waits_for} ({time.monotonic() - began_s:.0f} s)")
                await asyncio.sleep(_POLL_S)
        finally:
            status("")
        try:
            adapters = len(await client.list_adapters())
        except AdexError:
            adapters = None
    headline, *rest = banner(options, url, adapters, keyed=bool(key))
    with contextlib.suppress(OSError, ValueError):
        voice.greet(headline, rest)


async def _what_is_missing(
    client: AsyncClient, model_id: str, said: Mapping[str, str]
) -> str | None:
    """What keeps the server from serving, None once it does."""
    try:
        await client.health()
    except ServerUnreachable:
        return f"the scheduler to listen at {client.base_url}"
    except AdexError:
        counted = _COUNTED.search(said.get("worker", ""))
        progress = f" {bar(int(counted[1]), int(counted[2]))}" if counted else ""
        return f"the worker to load {model_id}{progress}"
    return None
