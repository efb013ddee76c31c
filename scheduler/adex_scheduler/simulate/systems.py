"""Every system that can be simulated, by name: ours, the ideal, and the baselines."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from adex_scheduler.core.limits import Limits
from adex_scheduler.core.state import SchedulerCore
from adex_scheduler.simulate.baseline_tiers import farthest_next, least_score
from adex_scheduler.simulate.baselines import Baseline, Rules
from adex_scheduler.simulate.loop import Course, Simulation
from adex_scheduler.simulate.machine import Machine
from adex_scheduler.simulate.result import RunResult
from adex_scheduler.simulate.trace import TracedRequest, ranks_of
from adex_scheduler.simulate.worker import ModelledWorker, WorkerKind

_AS_IT_IS = WorkerKind()
# A simulation asks how long requests wait, so none is turned away for having to.
SIMULATED_LIMITS = Limits(
    waiting_max=10**6, waiting_tenant_max=10**6, wait_s_max=1e6, prefix_cache=False
)
SHARING_LIMITS = replace(SIMULATED_LIMITS, prefix_cache=True)


@dataclass(frozen=True, slots=True)
class System:
    """How one is made: its rules (None: our own core), and how its worker departs from the rest."""

    text: str
    rules: Callable[[Machine], Rules] | None = None
    worker: WorkerKind = _AS_IT_IS


def _slots(machine: Machine) -> Rules:
    return Rules(slots=64, padded=True, pool_bytes=0.5 * machine.memory.device_bytes, blocking=True)


def _static(machine: Machine) -> float:
    """LoRAX's default keeps a tenth for adapters; here a sixth, 16 GB of the H200's 94.6."""
    return 0.17 * machine.memory.device_bytes


SYSTEMS: dict[str, System] = {
    "adex": System("the core that serves"),
    "ideal": System(
        "the same core, every adapter on the device from the start in memory of its own",
        worker=WorkerKind(all_resident=True),
    ),
    "sync-lru": System(
        "vLLM-like: 64 slots of the largest rank, LRU, loads between steps",
        _slots,
        WorkerKind(blocking=True),
    ),
    "s-lora-like": System(
        "one pool, loads between steps, first come first served, nothing kept that nobody uses",
        lambda _: Rules(blocking=True, head_of_line=True, keep_idle=False),
        WorkerKind(blocking=True),
    ),
    "async-lru-static": System(
        "loads beside the steps, LRU, a sixth of memory for adapters",
        lambda machine: Rules(pool_bytes=_static(machine)),
    ),
    "async-lru": System("loads beside the steps, LRU, one elastic pool", lambda _: Rules()),
    "lorax-like": System(
        "an active set by turns of 2 s, a head that is not loaded stops all, static pool",
        lambda machine: Rules(pool_bytes=_static(machine), cycle_s=2.0),
    ),
    "chameleon-like": System(
        "loads beside the steps, frequency + recency + size, one elastic pool",
        lambda _: Rules(victim=least_score),
    ),
    "clairvoyant": System(
        "loads beside the steps, one elastic pool, and foresight: the farthest next use leaves",
        lambda _: Rules(victim=farthest_next, foresight=True),
    ),
}


def simulate(
    system: str,
    machine: Machine,
    requests: Sequence[TracedRequest],
    *,
    course: Course | None = None,
    remote: bool = False,
    warm: bool = False,
    limits: Limits = SIMULATED_LIMITS,
    watch: Callable[[SchedulerCore], None] | None = None,
) -> RunResult:
    """Play the trace on the machine under the system.

    `remote` begins with no adapter on disk, `warm` with every one in host memory. `watch` looks at
    the core at each tick, where it is the core that runs.
    """
    made = SYSTEMS[system]
    remote = remote and not made.worker.all_resident
    kind = replace(made.worker, remote=remote, warm=warm and not remote)
    ranks = ranks_of(requests)
    worker = ModelledWorker(machine, ranks, kind)
    course = course or Course()
    if made.rules is None:
        core = SchedulerCore(worker.info(), limits)

        def look() -> None:
            if watch is not None:
                watch(core)

        return Simulation(core, worker, requests, course, look).run()
    baseline = Baseline(
        made.rules(machine),
        {name: machine.adapter_bytes(rank) for name, rank in ranks.items()},
        kv_token_bytes=machine.model.kv_token_bytes,
        trace=requests,
    )
    return Simulation(baseline, worker, requests, course).run()
