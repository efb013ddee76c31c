"""`adex calibrate`: the coefficients of a machine, fitted to steps and moves of a real worker."""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from adex_proto.adapter import AdapterKey
from adex_proto.errors import AdexError, ValidationError
from adex_scheduler.simulate.fit import MeasuredStep, fit_link, fit_step, mean_error
from adex_scheduler.simulate.machine import (
    LinkCost,
    Machine,
    Memory,
    ModelSize,
    StepLimits,
    machine_text,
)
from adex_scheduler.simulate.probe import MoveTimes, Probe, Resident

USER_ERROR = 2
_END_S_MAX = 10.0
_ADAPTERS_MAX = 64


@dataclass(frozen=True, slots=True)
class Measured:
    """Everything a machine is made of."""

    steps: tuple[MeasuredStep, ...]
    moves: MoveTimes
    residents: tuple[Resident, ...]


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns: 0, or 2 for what the caller can mend."""
    flags = _parser().parse_args(arguments)
    try:
        keys = _keys(flags.adapters)
        with _worker(flags.worker, flags.worker_flags, flags.adapters) as address:
            machine, error, count = asyncio.run(_calibrate(address, keys, flags))
        remark = f"Fitted by `adex calibrate` to {count} steps; mean error {100 * error:.1f} %."
        text = machine_text(machine, (remark,))
        if flags.out is not None:
            flags.out.write_text(text, encoding="utf-8")
        else:
            sys.stdout.write(text)
        sys.stderr.write(f"{remark}\n")
    except AdexError as error:
        sys.stderr.write(f"adex calibrate: {error}\n")
        return USER_ERROR
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="adex calibrate",
        description="Measure a worker, and write the machine file that `adex simulate` reads.",
    )
    add = parser.add_argument
    add("--adapters", type=Path, required=True, metavar="DIR", help="adapters, one in each folder")
    add("--worker", metavar="ADDRESS", help="a worker that serves nobody; else one is started")
    add("--out", type=Path, metavar="FILE", help="the machine file; else it is printed")
    add("--steps", type=Path, metavar="FILE", help="write what was measured too, as JSON lines")
    add("--name", help="what the machine is called in tables")
    add("--rounds", type=int, default=2, help="how often each shape of step is measured")
    add("--seconds", type=float, default=120.0, help="begin no further shape after this long")
    add(
        "worker_flags",
        nargs="*",
        metavar="-- WORKER FLAGS",
        help="flags of `adex worker` for the one that is started, such as --model-id",
    )
    return parser


def _keys(folder: Path) -> list[AdapterKey]:
    """Some of the folder's adapters, evenly chosen."""
    try:
        found = sorted(one for one in folder.iterdir() if (one / "adapter_config.json").is_file())
    except OSError as error:
        raise ValidationError(f"{folder} cannot be read: {error}", field="adapters") from error
    if not found:
        raise ValidationError(
            f"{folder} has no folder with an adapter_config.json", field="adapters"
        )
    every = -(-len(found) // _ADAPTERS_MAX)
    return [AdapterKey("", "local", str(one.resolve())) for one in found[::every]]


@contextmanager
def _worker(address: str | None, flags: Sequence[str], adapters: Path) -> Generator[str]:
    """The worker that was named, or one of our own until the end."""
    if address is not None:
        yield address
        return
    with tempfile.TemporaryDirectory(prefix="adex-", dir="/tmp") as folder:
        address = f"unix://{folder}/worker.sock"
        command = [sys.executable, "-P", "-m", "adex_worker", "--listen", address, *flags]
        command += ["--local-adapter-root", str(adapters.resolve())]
        command += ["--cache-dir", f"{folder}/cache", "--log-level", "warning"]
        process = subprocess.Popen(command, env=dict(os.environ))  # noqa: S603
        # Whatever ends this process ends the worker too.
        signal.signal(signal.SIGTERM, _end)
        try:
            yield address
        finally:
            process.terminate()
            try:
                process.wait(_END_S_MAX)
            except subprocess.TimeoutExpired:
                process.kill()


def _end(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


async def _calibrate(
    address: str, keys: Sequence[AdapterKey], flags: argparse.Namespace
) -> tuple[Machine, float, int]:
    probe = Probe(address)
    try:
        await probe.open()
        residents, moves = await probe.bring(keys)
        steps: list[MeasuredStep] = []
        began = time.monotonic()
        for sequences, prompt, count in _shapes(probe, len(residents)):
            if steps and time.monotonic() - began > flags.seconds:
                break
            some = [
                await probe.measure(sequences, prompt, residents[:count])
                for _ in range(flags.rounds)
            ]
            # The least of several: whatever else ran on the machine only ever adds.
            steps += [min(same, key=lambda one: one.seconds) for same in zip(*some, strict=True)]
        await probe.evict(residents)
    finally:
        await probe.close()
    measured = Measured(tuple(steps), moves, tuple(residents))
    if flags.steps is not None:
        flags.steps.write_text("".join(f"{json.dumps(asdict(one))}\n" for one in steps))
    machine = _machine(probe, measured, flags.name)
    return machine, mean_error(machine.step, measured.steps), len(steps)


def _shapes(probe: Probe, residents: int) -> Iterator[tuple[int, int, int]]:
    """(sequences, prompt tokens, distinct adapters), small and large ones in turn.

    Whatever number of them there is time for, they lie far apart.
    """
    info = probe.info
    pages = info.pages - info.pages // 2
    most = min(info.step_sequences_max, 256)
    batches = [count for count in (1, 4, 16, 64, 256, 2, 8, 32, 128) if count <= most]
    for prompt in (16, 256, 64, 1024):
        for sequences in batches:
            blocks = -(-(prompt + 8) // info.block_tokens) * sequences
            if prompt + 8 > info.positions_max or blocks > pages or sequences * prompt > 2048:
                continue
            for share in (1.0, 0.0, 0.5):
                yield sequences, prompt, min(round(share * sequences), residents)


def _machine(probe: Probe, measured: Measured, name: str | None) -> Machine:
    info, moves = probe.info, measured.moves
    versions = [resident.version for resident in measured.residents]
    per_rank = sum(one.bundle_bytes for one in versions) / max(sum(o.rank_max for o in versions), 1)
    resolved = [seconds for _, seconds in moves.resolved]
    return Machine(
        name=name or f"{info.model_id} on {info.device}, {info.dtype}",
        model=ModelSize(
            kv_token_bytes=info.page_bytes / info.block_tokens,
            adapter_rank_bytes=per_rank,
            positions_max=info.positions_max,
            block_tokens=info.block_tokens,
        ),
        memory=Memory(
            device_bytes=float(info.pages * info.page_bytes),
            host_bytes=float(info.host_bytes),
            disk_bytes=float(info.disk_bytes),
        ),
        limits=StepLimits(info.step_tokens_max, info.step_sequences_max),
        step=fit_step(measured.steps),
        resolve=LinkCost(sorted(resolved)[len(resolved) // 2], 1e12),
        fetch=fit_link(moves.fetched),
        stage=fit_link(moves.staged),
        page_in=fit_link(moves.paged_in),
    )


if __name__ == "__main__":
    sys.exit(main())
