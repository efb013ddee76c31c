"""What operators ask about adapters: preload and prefetch, pin and unpin, reload, unload.

All but unloading are errands: sequences without tokens, which wait for adapters in the lines where
requests wait, and are ended in `state`. Here are the books of what outlives one: the pins, the
hints that wait for an idle moment, and the versions that are being unloaded.

A pin is the operator's wish and stands until unpinned; the copy itself gives way only where a
request could otherwise never be served, and comes back. Pins may keep a bounded share of slots,
pages, host memory and disk.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import assert_never

from adex_proto.adapter import AdapterKey, Tier
from adex_proto.errors import AdapterNotFound, AdexError, Overloaded, PinRefused, WorkerLost
from adex_scheduler.core.adapters import Adapter, Residence
from adex_scheduler.core.events import Control as ControlEvent
from adex_scheduler.core.events import Pin, Preload, Reload, Unload, Unpin
from adex_scheduler.core.instructions import Brought, Fail, Outbox
from adex_scheduler.core.limits import Limits
from adex_scheduler.core.residency import Residency
from adex_scheduler.core.sequence import Errand, Sequence
from adex_scheduler.core.tiers import Tiers


@dataclass(slots=True, eq=False)
class Pinned:
    """One pinned name. `errand` is the sequence that brings its adapter, if one is under way.

    `error` says why the pin holds nothing now; it is tried again with the next worker.
    """

    tenant: str
    tier: Tier
    errand: int = 0
    error: AdexError | None = None


@dataclass(frozen=True, slots=True)
class Unloading:
    """A version on its way out, down to `floor`; given up at `until`."""

    digest: str
    floor: Tier
    until: float


class Control:
    """The books of pins, hints and unloadings, over the tiers of one worker."""

    def __init__(self, limits: Limits, residency: Residency, tiers: Tiers, out: Outbox) -> None:
        self.pins: dict[AdapterKey, Pinned] = {}
        self.hints: OrderedDict[AdapterKey, None] = OrderedDict()
        self.unloadings: dict[int, Unloading] = {}
        self._limits = limits
        self.residency = residency
        self.tiers = tiers
        self.out = out

    def take_in(self, event: ControlEvent, now: float, *, connected: bool) -> Errand | None:
        """Do what can be done at once. Returns: the errand that remains, if one does."""
        match event:
            case Preload():
                if not event.hint:
                    return Errand(event.tier)
                self._remember_hint(event.key)
                self._answer(event.number, self._adapter_of(event.key))
            case Pin():
                return self._pin(event)
            case Unpin():
                adapter = self._adapter_of(event.key)
                self.unpin(event.key)
                self._answer(event.number, adapter)
            case Reload():
                return Errand(Tier.DISK, anew=True)
            case Unload():
                self._unload(event, now, connected=connected)
            case _:
                assert_never(event)
        return None

    # Pins.

    def _pin(self, event: Pin) -> Errand | None:
        pinned = self.pins.get(event.key)
        if pinned is None and len(self.pins) >= self._limits.pins_max:
            error = _pin_refusal("names are pinned", len(self.pins), self._limits.pins_max)
            self.out.answers.append(Fail(event.number, error))
            return None
        self.pins[event.key] = Pinned(event.tenant, event.tier, event.number)
        return Errand(event.tier, keeps=True)

    def unpin(self, key: AdapterKey) -> None:
        """Let the name's version go where others would have it go."""
        if self.pins.pop(key, None) is not None:
            self._release(key)

    def _release(self, key: AdapterKey) -> None:
        alias = self.residency.names.get(key)
        if alias is not None:
            alias.pinned = False
            self.residency.let_go(alias)

    def hold(self, sequence: Sequence) -> AdexError | None:
        """Let the adapter that a pin's errand is bound to be kept, or say why it may not be."""
        key = sequence.key
        pinned = self.pins.get(key) if key is not None else None
        errand = sequence.errand
        assert errand is not None
        if key is None or pinned is None or pinned.errand != sequence.number:
            # Unpinned, or pinned anew, meanwhile: what is left of it is a preload.
            errand.keeps = False
            return None
        adapter = self.tiers.adapters[sequence.digest]
        if key not in adapter.names:
            # The name means another version by now: that one is to be kept.
            errand.keeps = False
            pinned.errand = 0
            self.tiers.unsettled[key] = None
            return None
        if adapter.keepers.get(key) is pinned.tier:
            return None
        adapter.keep(key, pinned.tier)
        error = self._excess()
        if error is not None:
            adapter.keep(key, Tier.ABSENT)
        else:
            alias = self.residency.names.get(key)
            assert alias is not None
            alias.pinned = True
        self.tiers.settle(adapter)
        return error

    def _excess(self) -> AdexError | None:
        """What is kept beyond the share that may be, if anything is."""
        info, share = self.tiers.info, self._limits.pinned_fraction
        kept = list(self._kept())
        device = [adapter for adapter in kept if adapter.kept is Tier.DEVICE]
        host = [adapter for adapter in kept if adapter.kept is Tier.HOST]
        for what, count, most in (
            ("slots of the device", len(device), info.slots_max),
            ("pages of the device", sum(adapter.pages for adapter in device), info.pages),
            ("bytes of host memory", _bytes(host), info.host_bytes),
            ("bytes on disk", _bytes(kept), info.disk_bytes),
        ):
            if count > int(share * most):
                return _pin_refusal(f"{what} would be kept by pins", count, int(share * most))
        return None

    def _kept(self) -> Iterator[Adapter]:
        """Every version that a pin keeps, once."""
        digests: dict[str, None] = {}
        for key in self.pins:
            adapter = self._adapter_of(key)
            if adapter is not None and adapter.kept:
                digests[adapter.digest] = None
        return (self.tiers.adapters[digest] for digest in digests)

    def homeless(self) -> list[tuple[AdapterKey, Pinned]]:
        """Pins whose adapter has left its tier, or that mean another version now."""
        keys = list(self.tiers.unsettled)
        self.tiers.unsettled.clear()
        return [(key, pinned) for key in keys if (pinned := self._homeless(key)) is not None]

    def _homeless(self, key: AdapterKey) -> Pinned | None:
        pinned, adapter = self.pins.get(key), self._adapter_of(key)
        if pinned is None or pinned.errand or pinned.error is not None:
            return None
        kept = adapter is not None and adapter.keepers.get(key) is pinned.tier
        return None if kept and adapter and adapter.at_hand >= pinned.tier else pinned

    def stands(self, errand: Sequence) -> bool:
        """Whether the errand goes on though nobody waits to hear of it."""
        pinned = self.pins.get(errand.key) if errand.key is not None else None
        return pinned is not None and pinned.errand == errand.number

    def on_errand_over(self, sequence: Sequence, error: AdexError | None) -> None:
        """A pin's errand has ended; one that failed keeps nothing."""
        key = sequence.key
        if key is None or not self.stands(sequence):
            return
        pinned = self.pins[key]
        pinned.errand = 0
        if error is None or isinstance(error, WorkerLost):
            # Without a worker there is nothing to keep; the next one is asked again.
            return
        if sequence.number > 0:
            self.unpin(key)
        else:
            pinned.error = error
            self._release(key)

    def on_worker_ready(self) -> None:
        """Nothing is on the new worker's device: every pin is to be seen to."""
        for key, pinned in self.pins.items():
            pinned.error = None
            self.tiers.unsettled[key] = None

    # Hints.

    def _remember_hint(self, key: AdapterKey) -> None:
        self.hints[key] = None
        self.hints.move_to_end(key)
        if len(self.hints) > self._limits.hints_max:
            self.hints.popitem(last=False)

    @property
    def may_follow_hint(self) -> bool:
        """Whether there is a hint, and nothing at all is wanted on the way to host memory."""
        if not self.hints:
            return False
        tiers = self.tiers
        busy = self.residency.fetching or tiers.staging or tiers.to_stage or tiers.to_page_in
        return not busy and not any(tiers.to_fetch.values())

    def take_hint(self) -> AdapterKey | None:
        """The oldest hint, if it may be followed now."""
        return self.hints.popitem(last=False)[0] if self.may_follow_hint else None

    # Unloading.

    def _unload(self, event: Unload, now: float, *, connected: bool) -> None:
        adapter = self._adapter_of(event.key)
        known = self.residency.forget(event.key)
        self.unpin(event.key)
        self.hints.pop(event.key, None)
        if not known:
            error = AdapterNotFound(
                "No adapter is loaded under that name",
                field="adapter_id",
                remedy="See the list of adapters",
            )
            self.out.answers.append(Fail(event.number, error))
        elif adapter is None or adapter.names or not connected:
            self._answer(event.number, adapter)
        else:
            floor = Tier.ABSENT if event.disk else Tier.DISK
            until = now + self._limits.wait_s_max
            self.unloadings[event.number] = Unloading(adapter.digest, floor, until)

    def advance(self) -> None:
        """Send versions that are being unloaded one tier further away, where that can be."""
        for number, unloading in list(self.unloadings.items()):
            adapter = self.tiers.adapters.get(unloading.digest)
            if adapter is None or adapter.kept:
                self._unloaded(number, adapter)
                continue
            match adapter.residence:
                case Residence.DEVICE:
                    # Those who wait for it as well will have it fetched back from the disk.
                    self.tiers.drain(adapter, -1)
                case Residence.HOST:
                    self.tiers.evict_host(adapter)
                case Residence.DISK:
                    free = not adapter.users and not adapter.names
                    if unloading.floor is Tier.ABSENT and free:
                        self.residency.evict_disk(adapter)
                    else:
                        self._unloaded(number, adapter)
                case _:
                    pass

    def expire(self, now: float) -> None:
        """Give up waiting for those who use a version that is being unloaded."""
        for number, unloading in list(self.unloadings.items()):
            if unloading.until <= now:
                del self.unloadings[number]
                error = Overloaded("The adapter is still used", remedy="Try again later")
                self.out.answers.append(Fail(number, error))

    def _unloaded(self, number: int, adapter: Adapter | None) -> None:
        digest = self.unloadings.pop(number).digest
        tier = adapter.at_hand if adapter else Tier.ABSENT
        self.out.answers.append(Brought(number, digest, tier, done=True))

    def _adapter_of(self, key: AdapterKey) -> Adapter | None:
        alias = self.residency.names.get(key)
        return self.tiers.adapters.get(alias.digest or "") if alias else None

    def _answer(self, number: int, adapter: Adapter | None) -> None:
        digest, tier = (adapter.digest, adapter.at_hand) if adapter else ("", Tier.ABSENT)
        self.out.answers.append(Brought(number, digest, tier, done=True))


def _bytes(adapters: list[Adapter]) -> int:
    return sum(adapter.version.bundle_bytes for adapter in adapters)


def _pin_refusal(what: str, count: int, most: int) -> PinRefused:
    return PinRefused(
        f"{count} {what}, at most {most} may", field="tier", remedy="Unpin another adapter first"
    )
