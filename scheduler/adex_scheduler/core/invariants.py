"""What must hold after every event. For tests: each check visits everything."""

from collections import Counter
from collections.abc import Iterator

from adex_proto.adapter import Tier
from adex_scheduler.core.adapters import Adapter, HostCopy, Residence
from adex_scheduler.core.fairness import Line
from adex_scheduler.core.prefixes import Prefix
from adex_scheduler.core.sequence import Sequence, Stage
from adex_scheduler.core.state import SchedulerCore

_WAITING = (Stage.WAITING, Stage.WAITING_ADAPTER)
_USABLE = (Residence.DEVICE, Residence.DRAINING)
_HAS_SLOT = (Residence.PLACING, Residence.PAGING_IN, *_USABLE, Residence.LEAVING_DEVICE)


def check(core: SchedulerCore) -> None:
    """Raise AssertionError, naming the culprit, unless the core's books agree with each other."""
    _check_pages(core)
    _check_prefixes(core)
    _check_adapters(core)
    _check_ledgers(core)
    _check_idle_groups(core)
    _check_names(core)
    _check_pins(core)
    _check_sequences(core)
    _check_queues(core)
    _check_steps(core)


def _check_pages(core: SchedulerCore) -> None:
    """Every page has one owner: it is free, an adapter's, a sequence's, or a shared block's."""
    owners: dict[int, str] = {}

    def own(page: int, owner: str) -> None:
        assert page not in owners, f"page {page}: {owners[page]} and {owner}"
        owners[page] = owner

    for page in range(core.pool.pages):
        if core.pool.is_free(page):
            own(page, "free")
    for adapter in core.tiers.adapters.values():
        for page in _pages_of(core, adapter):
            own(page, f"adapter {adapter.digest}")
    for run in core.blocks.prefixes:
        for page in run.pages:
            own(page, f"prefix {run.key}")
    for sequence in core.sequences.values():
        for page in sequence.blocks[sequence.offered :]:
            own(page, f"sequence {sequence.number}")
    missing = set(range(core.pool.pages)) - owners.keys()
    assert not missing, f"pages lost: {sorted(missing)[:10]} of {len(missing)}"
    assert len(owners) == core.pool.pages


def _pages_of(core: SchedulerCore, adapter: Adapter) -> Iterator[int]:
    """The pages an adapter owns; while it is being placed, not those of victims still there."""
    if adapter.residence not in _HAS_SLOT:
        assert adapter.first_page == -1
        return
    victims = [v for v in core.tiers.adapters.values() if v.claimed_by is adapter]
    assert len(victims) == adapter.missing
    for page in range(adapter.first_page, adapter.stop_page):
        if not any(victim.first_page <= page < victim.stop_page for victim in victims):
            yield page


def _check_prefixes(core: SchedulerCore) -> None:
    users: Counter[Prefix] = Counter()
    for sequence in core.sequences.values():
        _check_stand(core, sequence)
        for run in _runs_above(sequence):
            users[run] += 1
    pool = core.pool
    loose = {page for page in range(pool.pages) if pool.is_loose(page)}
    free = {page for page in range(pool.pages) if pool.is_free(page)}
    assert pool.pages_free == len(free)
    idle: set[int] = set()
    for run in core.blocks.prefixes:
        assert run.users == users[run], f"prefix {run.key}"
        assert run.pages or run.users or run.below, f"prefix {run.key} is nobody's"
        assert len(run.tokens) == len(run.pages) * core.info.block_tokens
        assert all(one.above is run for one in run.below.values())
        if run.users == 0:
            idle.update(run.pages)
    assert loose == free | idle
    offered = {
        page
        for adapter in core.tiers.device_idle.values()
        for page in range(adapter.first_page, adapter.stop_page)
    }
    clearable = {page for page in range(pool.pages) if pool.is_clearable(page)}
    assert clearable == loose | offered
    assert core.blocks.pages_idle == len(idle)


def _runs_above(sequence: Sequence) -> Iterator[Prefix]:
    """The runs that the sequence uses, the last first."""
    run = sequence.stand
    while run is not None:
        yield run
        run = run.above


def _check_stand(core: SchedulerCore, sequence: Sequence) -> None:
    """What a sequence has offered is what the prefix at whose end it stands holds."""
    runs = list(reversed(list(_runs_above(sequence))))
    tokens = [token for run in runs for token in run.tokens]
    pages = [page for run in runs for page in run.pages]
    offered = sequence.offered
    assert tokens == sequence.tokens[: offered * core.info.block_tokens], f"{sequence.number}"
    assert pages == sequence.blocks[:offered], f"{sequence.number}"


def _check_adapters(core: SchedulerCore) -> None:
    pins: Counter[str] = Counter()
    waiting: dict[str, set[int]] = {}
    for sequence in core.sequences.values():
        if sequence.digest:
            if sequence.stage in _WAITING:
                waiting.setdefault(sequence.digest, set()).add(sequence.number)
            else:
                pins[sequence.digest] += 1
    for adapter in core.tiers.adapters.values():
        assert adapter.pins == pins[adapter.digest], f"pins of {adapter.digest}"
        assert adapter.waiting.keys() == waiting.get(adapter.digest, set())
        if adapter.pins:
            assert adapter.residence in _USABLE, f"{adapter.digest} is pinned"
        if adapter.residence is Residence.DRAINING:
            assert adapter.pins, f"{adapter.digest} drains for nobody"
        if adapter.claimed_by is not None:
            assert adapter.residence is Residence.LEAVING_DEVICE
        if adapter.residence in (Residence.HOST, Residence.PLACING, Residence.PAGING_IN):
            assert adapter.host is HostCopy.HELD, f"{adapter.digest} is read from host memory"
    used = [a.slot for a in core.tiers.adapters.values() if a.residence in _HAS_SLOT]
    assert sorted([*used, *core.tiers.slots_free]) == list(range(1, core.info.slots_max + 1))


def _check_ledgers(core: SchedulerCore) -> None:
    tiers, everyone = core.tiers, list(core.tiers.adapters.values())

    def total(*residences: Residence) -> int:
        return sum(a.version.bundle_bytes for a in everyone if a.residence in residences)

    def count(*residences: Residence) -> int:
        return sum(a.residence in residences for a in everyone)

    on_host = sum(a.version.bundle_bytes for a in everyone if a.host is not HostCopy.NONE)
    leaving = sum(a.version.bundle_bytes for a in everyone if a.host is HostCopy.LEAVING)
    assert tiers.disk_bytes == sum(a.version.bundle_bytes for a in everyone)
    assert tiers.disk_leaving == count(Residence.LEAVING_DISK)
    assert tiers.disk_leaving_bytes == total(Residence.LEAVING_DISK)
    assert tiers.host_bytes == on_host + total(Residence.STAGING)
    assert tiers.host_leaving_bytes == leaving
    assert tiers.host_bytes <= core.info.host_bytes
    assert tiers.slots_leaving == count(Residence.LEAVING_DEVICE)
    assert tiers.staging == count(Residence.STAGING) <= core.limits.stages_max
    assert tiers.paging_in == count(Residence.PLACING, Residence.PAGING_IN)
    assert tiers.paging_in <= core.limits.page_ins_max
    fetching = sum(alias.fetching for alias in core.residency.names.all())
    assert core.residency.fetching == fetching <= core.limits.fetches_max
    unclaimed = 0
    for adapter in everyone:
        if adapter.residence is Residence.LEAVING_DEVICE:
            claimant = adapter.claimed_by
            taken: set[int] = set()
            if claimant is not None:
                taken = set(range(claimant.first_page, claimant.stop_page))
            unclaimed += len(set(range(adapter.first_page, adapter.stop_page)) - taken)
    assert tiers.pages_leaving == unclaimed


def _check_idle_groups(core: SchedulerCore) -> None:
    tiers = core.tiers
    for adapter in tiers.adapters.values():
        on_device = adapter.residence is Residence.DEVICE
        unpinned = on_device and adapter.pins == 0
        kept = adapter.kept is Tier.DEVICE
        loose = unpinned and not kept
        assert (adapter.digest in tiers.device_idle) == (loose and not adapter.waiting)
        assert (adapter.digest in tiers.device_wanted) == (loose and bool(adapter.waiting))
        pinned = on_device and adapter.pins > 0 and not kept
        assert (adapter.digest in tiers.device_pinned) == pinned
        assert (adapter.digest in tiers.device_kept) == (unpinned and kept)
        is_draining = adapter.residence is Residence.DRAINING
        assert (adapter.digest in tiers.draining) == is_draining
        spare = on_device or (adapter.residence is Residence.HOST and adapter.users == 0)
        held = adapter.host is HostCopy.HELD
        held_on_host = adapter.kept is Tier.HOST
        assert (adapter.digest in tiers.host_idle) == (spare and held and not held_on_host)
        assert (adapter.digest in tiers.host_kept) == (spare and held and held_on_host)
        unused = adapter.residence is Residence.DISK and adapter.users == 0
        assert (adapter.digest in tiers.disk_idle) == (unused and not adapter.kept)
        assert (adapter.digest in tiers.in_slots) == (adapter.slot > 0)
        assert (adapter.digest in tiers.in_host) == (adapter.host is not HostCopy.NONE)
    groups = (tiers.device_idle, tiers.device_wanted, tiers.host_idle, tiers.disk_idle)
    for group in (*groups, tiers.in_slots, tiers.in_host):
        assert group.keys() <= tiers.adapters.keys()


def _check_names(core: SchedulerCore) -> None:
    if not core.connected:
        return
    means: dict[str, set[str]] = {}
    for alias in core.residency.names.all():
        for number in alias.waiting:
            assert core.sequences[number].digest == ""
        if alias.digest is not None:
            errands = [core.sequences[number].errand for number in alias.waiting]
            assert all(errand and errand.anew for errand in errands)
            means.setdefault(alias.digest, set()).add(str(alias.key))
    for adapter in core.tiers.adapters.values():
        assert {str(key) for key in adapter.names} == means.pop(adapter.digest, set())
    assert not means, f"names of versions nobody holds: {means}"
    busy = core.limits.waiting_max + core.info.step_sequences_max + core.limits.fetches_max
    assert len(core.residency.names) <= core.limits.aliases_max + busy


def _check_pins(core: SchedulerCore) -> None:
    """A pin keeps its adapter, or an errand is on its way to, or it says why it cannot."""
    control, tiers = core.control, core.tiers
    errands = [s for s in core.sequences.values() if s.errand is not None]
    assert core.errands.living == len(errands)
    assert len(errands) <= core.limits.errands_max + core.limits.pins_max + 1
    for sequence in errands:
        assert not sequence.tokens
        assert sequence.stage is Stage.WAITING_ADAPTER
    if not core.connected:
        return
    for key, pinned in control.pins.items():
        alias = core.residency.names.get(key)
        adapter = tiers.adapters.get(alias.digest or "") if alias else None
        if pinned.errand:
            assert core.sequences[pinned.errand].key == key
        elif pinned.error is None and key not in tiers.unsettled:
            assert adapter is not None, f"{key} is pinned and means nothing"
            assert adapter.keepers[key] is pinned.tier
            assert adapter.at_hand >= pinned.tier, f"{key} is not where it is pinned"
    kept = [adapter for adapter in tiers.adapters.values() if adapter.kept]
    for adapter in kept:
        assert adapter.kept is max(adapter.keepers.values())
        assert adapter.keepers.keys() <= control.pins.keys() & adapter.names.keys()
    share = core.limits.pinned_fraction
    device = [adapter for adapter in kept if adapter.kept is Tier.DEVICE]
    host = [adapter for adapter in kept if adapter.kept is Tier.HOST]
    assert len(device) <= share * core.info.slots_max
    assert sum(adapter.pages for adapter in device) <= share * core.info.pages
    assert sum(a.version.bundle_bytes for a in host) <= share * core.info.host_bytes
    assert sum(a.version.bundle_bytes for a in kept) <= share * core.info.disk_bytes


def _check_sequences(core: SchedulerCore) -> None:
    for number, sequence in core.sequences.items():
        assert sequence.number == number
        assert sequence.stage is not Stage.ENDED
        room = len(sequence.blocks) * core.info.block_tokens
        planned = core.batch.decoding.planned(sequence)
        assert sequence.computed <= planned <= room or not sequence.blocks
        assert sequence.outputs <= sequence.sampling.max_new_tokens
        if sequence.stage in _WAITING:
            assert not sequence.blocks
            assert not sequence.on_worker
            assert planned == sequence.promised == 0


def _check_queues(core: SchedulerCore) -> None:
    tiers = core.tiers
    standing = Counter(s.number for line in tiers.lines for s in line.members())
    for sequence in core.sequences.values():
        expected = _expected_line(core, sequence)
        count = standing.pop(sequence.number, 0)
        assert count == (expected is not None), f"{sequence.number} stands in {count} lines"
        assert expected is None or sequence in expected
        assert (sequence in tiers.ready) == (sequence.stage is Stage.WAITING), (
            f"{sequence.number} is {sequence.stage}"
        )
    assert not standing, f"strangers in line: {standing}"
    requests = [s for s in core.sequences.values() if s.errand is None]
    waiting = Counter(s.tenant for s in requests if s.stage in _WAITING)
    living = Counter(s.tenant for s in core.sequences.values())
    assert core.tenants.waiting == sum(waiting.values())
    for tenant, count in living.items():
        assert core.tenants[tenant].live == count
        assert core.tenants[tenant].waiting == waiting[tenant]


def _expected_line(core: SchedulerCore, sequence: Sequence) -> Line | None:
    tiers = core.tiers
    if sequence.stage not in _WAITING or not core.connected:
        return None
    if sequence.key is None:
        return tiers.ready
    if sequence.digest and sequence.errand is not None:
        adapter = tiers.adapters[sequence.digest]
        assert adapter.at_hand < sequence.errand.tier, f"errand {sequence.number} is over"
    if not sequence.digest:
        alias = core.residency.names.get(sequence.key)
        assert alias is not None
        assert sequence.number in alias.waiting
        return None if alias.fetching else tiers.fetch_line(alias.key)
    lines = {
        Residence.DEVICE: tiers.ready,
        Residence.HOST: tiers.to_page_in,
        Residence.DISK: tiers.to_stage,
    }
    return lines.get(tiers.adapters[sequence.digest].residence)


def _check_steps(core: SchedulerCore) -> None:
    batch = core.batch
    running = {n for n, s in core.sequences.items() if s.stage is Stage.RUNNING}
    assert batch.sequences.keys() == running
    _check_parts(core)
    assert batch.running <= batch.running_max
    assert len(batch.flights) <= core.limits.plans_in_flight_max
    assert batch.promised == sum(s.promised for s in core.sequences.values())
    leaving = {n for n, s in core.sequences.items() if s.stage in (Stage.PREEMPTED, Stage.ENDING)}
    fenced = [*batch.leaving, *(s for flight in batch.flights for s in flight.finished)]
    numbers = [sequence.number for sequence in fenced]
    assert len(numbers) == len(set(numbers)), "a sequence leaves twice"
    assert set(numbers) == leaving
    steps = [flight.step for flight in batch.flights]
    assert steps == list(range(batch.next_step - len(steps), batch.next_step))
    if core.connected and not batch.flights:
        # Nothing in flight means nothing will come of itself: no part of a step may be left over.
        assert not batch.leaving


def _check_parts(core: SchedulerCore) -> None:
    """Each that runs reads its prompt, decodes, rests for want of a page, or is planned to its end.

    What the steps in flight owe is what is planned and not known.
    """
    batch = core.batch
    decoding = set(batch.decoding.numbers)
    parts = [*decoding, *batch.resting, *batch.prefilling]
    assert len(parts) == len(set(parts)), "a sequence has two parts in a step"
    assert set(parts) <= batch.sequences.keys()
    owed = Counter(number for flight in batch.flights for number in flight.owed)
    for number, sequence in batch.sequences.items():
        planned, known = batch.decoding.planned(sequence), len(sequence.tokens)
        if number in batch.prefilling:
            assert planned < known, f"the prompt of {number}"
            assert not owed[number], f"the prompt of {number}"
            continue
        assert planned + 1 == known + owed[number], f"{number} is planned to {planned}"
        assert (number in parts) == (planned < sequence.positions_max), f"the end of {number}"
        room = len(sequence.blocks) * core.info.block_tokens
        assert number not in batch.resting or planned == room, f"{number} rests without need"
