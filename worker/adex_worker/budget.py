"""How much of a machine a worker takes when nobody says: device, dtype, bytes and step sizes.

What is measured of the machine is passed in, so that each rule can be read, and tested, as numbers.
"""

from dataclasses import dataclass, replace

from adex_proto.errors import ValidationError

GIB = 1024**3
# A pool needs room for a prompt, an adapter, and something to decode.
_PAGES_MIN = 16
# What a driver keeps of some forty recorded steps of a thousand launches.
_RECORDED_BYTES = GIB // 4


@dataclass(frozen=True, slots=True)
class Machine:
    """Bytes free right now. `device_free` is the accelerator's after the weights, None on a CPU."""

    host_free: int
    disk_free: int
    device_free: int | None


@dataclass(frozen=True, slots=True)
class Budget:
    """What this worker may use. `pages` of `page_bytes` are the device pool."""

    pages: int
    page_bytes: int
    host_bytes: int
    disk_bytes: int
    step_tokens_max: int
    step_sequences_max: int

    @property
    def pool_bytes(self) -> int:
        return self.pages * self.page_bytes


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the operator asked for, None where nothing."""

    device_bytes: int | None = None
    host_bytes: int | None = None
    disk_bytes: int | None = None
    step_tokens_max: int | None = None
    step_sequences_max: int | None = None


def budget_of(
    wishes: Wishes, machine: Machine, page_bytes: int, recorded_row_bytes: int = 0
) -> Budget:
    """Fill in what was not asked for. Raises ValidationError for what the machine cannot give.

    `recorded_row_bytes` is what each sequence of a step takes on a device that records its steps.
    """
    on_cpu = machine.device_free is None
    # Steps on a CPU take long, and a long step delays every sequence's next token.
    tokens = wishes.step_tokens_max or (512 if on_cpu else 4096)
    sequences = wishes.step_sequences_max or min(tokens, 64 if on_cpu else 256)
    if machine.device_free is not None and recorded_row_bytes:
        taken = sequences * recorded_row_bytes + _RECORDED_BYTES
        machine = replace(machine, device_free=max(0, machine.device_free - taken))
    pool_bytes = wishes.device_bytes or _pool_bytes(machine)
    free = machine.host_free if machine.device_free is None else machine.device_free
    if pool_bytes > free:
        raise ValidationError(
            f"--device-memory asks for {as_size(pool_bytes)}, {as_size(free)} are free",
            field="device_memory",
            remedy="Ask for less, or auto",
        )
    pages = pool_bytes // page_bytes
    if pages < _PAGES_MIN:
        raise ValidationError(
            f"--device-memory {as_size(pool_bytes)} holds {pages} pages of {as_size(page_bytes)},"
            f" where at least {_PAGES_MIN} are needed",
            field="device_memory",
            remedy=f"Give at least {as_size(_PAGES_MIN * page_bytes)}",
        )
    return Budget(
        pages=pages,
        page_bytes=page_bytes,
        host_bytes=wishes.host_bytes or max(GIB // 4, machine.host_free // 4),
        disk_bytes=wishes.disk_bytes or max(GIB, min(200 * GIB, machine.disk_free // 2)),
        step_tokens_max=max(tokens, sequences),
        step_sequences_max=sequences,
    )


def cpu_dtype(configured: str, *, has_bfloat16_units: bool) -> str:
    """The type to serve in on a CPU that a checkpoint's `configured` type becomes.

    No CPU multiplies float16 matrices fast, and one without bfloat16 units emulates those too.
    """
    if configured == "float32":
        return configured
    return "bfloat16" if has_bfloat16_units else "float32"


def threads_of(cores: int, share: str) -> int:
    """Threads of a step on so many cores, where a control group's `cpu.max` says `share`.

    Threads beyond a share are not only useless: the kernel stops all of them for the rest of each
    period, as soon as together they have had it.
    """
    match share.split():
        case [quota, period] if quota.isdecimal() and period.isdecimal() and int(period):
            return max(1, min(cores, int(quota) // int(period)))
        case _:
            return cores


def as_size(size: int) -> str:
    """A number of bytes for people."""
    for unit, power in (("GiB", GIB), ("MiB", 1024**2), ("KiB", 1024)):
        if size >= power:
            return f"{size / power:.1f} {unit}"
    return f"{size} bytes"


def _pool_bytes(machine: Machine) -> int:
    if machine.device_free is not None:
        # The rest is for activations, logits and the allocator's slack.
        return machine.device_free * 9 // 10
    return min(4 * GIB, machine.host_free // 4)
