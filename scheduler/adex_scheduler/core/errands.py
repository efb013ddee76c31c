"""The lives of errands: begun by an operator, a hint or a pin that lost its place, and ended.

An errand's number is its asker's, or negative where nobody asked: those come before the requests of
their tenant, and only a pin's own. A hint's errand belongs to a tenant that everyone else comes
before.
"""

import math

from adex_proto.adapter import AdapterKey, Tier
from adex_proto.errors import AdexError, Overloaded
from adex_proto.sampling import SamplingParams
from adex_scheduler.core.control import Control
from adex_scheduler.core.events import Control as ControlEvent
from adex_scheduler.core.events import Unload, Unpin
from adex_scheduler.core.fairness import Tenants
from adex_scheduler.core.instructions import Brought, Fail
from adex_scheduler.core.limits import Limits
from adex_scheduler.core.sequence import Errand, Sequence

# No key has this tenant, so nobody is served through it.
HINTS_TENANT = "hint:"
# -1 is what an adapter drains for that drains for nobody.
_FIRST_OWN_NUMBER = -2
_NO_TOKENS = SamplingParams(max_new_tokens=1)


class Errands:
    """Begins errands and says how they ended; they stand among the core's `sequences`."""

    def __init__(
        self, limits: Limits, sequences: dict[int, Sequence], tenants: Tenants, control: Control
    ) -> None:
        self.living = 0
        self._limits = limits
        self._sequences = sequences
        self._tenants = tenants
        self._control = control
        self._residency = control.residency
        self._tiers = control.tiers
        self._out = control.out
        self._own_number = _FIRST_OWN_NUMBER

    @property
    def due(self) -> bool:
        """Whether there is anything to begin or to end."""
        tiers = self._tiers
        return bool(tiers.stirred or tiers.unsettled or self._control.may_follow_hint)

    def ask(self, event: ControlEvent, now: float, *, connected: bool) -> bool:
        """Take in what an operator asks; whether an errand has begun, else it is answered."""
        # What makes room is always taken.
        under_way = self.living + len(self._control.unloadings)
        if under_way >= self._limits.errands_max and not isinstance(event, Unpin):
            error = Overloaded(
                f"{under_way} changes of adapters are under way, at most "
                f"{self._limits.errands_max} may",
                remedy="Try again shortly",
                retry_after_s=1.0,
            )
            self._out.answers.append(Fail(event.number, error))
            return False
        errand = self._control.take_in(event, now, connected=connected)
        if errand is None:
            return False
        assert not isinstance(event, Unpin | Unload)
        sequence = self._begin(event.number, event.tenant, event.key, errand, now)
        if connected:
            self._want(sequence, now)
        return True

    def begin_own(self, now: float) -> None:
        """Bring back what pins have lost, or follow a hint where nothing else is to be done."""
        homeless = self._control.homeless()
        for key, pinned in homeless:
            number = self._next_number()
            pinned.errand = number
            errand = Errand(pinned.tier, keeps=True)
            self._want(self._begin(number, pinned.tenant, key, errand, now), now)
        hint = None if homeless else self._control.take_hint()
        if hint is not None:
            sequence = self._begin(self._next_number(), HINTS_TENANT, hint, Errand(Tier.HOST), now)
            sequence.payer.served = math.inf
            self._want(sequence, now)

    def over(self) -> list[tuple[Sequence, AdexError | None]]:
        """Those that are where they shall be, or may not be there; the others tell how far."""
        tiers = self._tiers
        stirred = [tiers.stirred[number] for number in sorted(tiers.stirred)]
        tiers.stirred.clear()
        over: list[tuple[Sequence, AdexError | None]] = []
        for sequence in stirred:
            adapter = tiers.adapters.get(sequence.digest)
            errand = sequence.errand
            if adapter is None or sequence.number not in adapter.waiting or errand is None:
                continue
            error = self._control.hold(sequence) if errand.keeps else None
            if error is not None or adapter.at_hand >= errand.tier:
                over.append((sequence, error))
            elif sequence.number > 0:
                tier = adapter.at_hand
                self._out.answers.append(Brought(sequence.number, adapter.digest, tier, done=False))
        return over

    def stands(self, errand: Sequence) -> bool:
        """Whether the errand goes on though nobody waits to hear of it: a pin stands."""
        return self._control.stands(errand)

    def end(self, sequence: Sequence, error: AdexError | None) -> None:
        """An errand that stands nowhere any more is over; its asker learns how."""
        self.living -= 1
        self._control.on_errand_over(sequence, error)
        if sequence.number < 0:
            return
        if error is not None:
            self._out.answers.append(Fail(sequence.number, error))
            return
        adapter = self._tiers.adapters[sequence.digest]
        tier = adapter.at_hand
        self._out.answers.append(Brought(sequence.number, adapter.digest, tier, done=True))

    def _want(self, sequence: Sequence, now: float) -> None:
        error = self._residency.want(sequence, now)
        if error is not None:
            self._residency.failed.append((sequence, error))

    def _next_number(self) -> int:
        self._own_number -= 1
        return self._own_number + 1

    def _begin(
        self, number: int, tenant: str, key: AdapterKey, errand: Errand, now: float
    ) -> Sequence:
        self.living += 1
        sequence = self._sequences[number] = Sequence(
            number=number,
            payer=self._tenants.enter(tenant),
            key=key,
            sampling=_NO_TOKENS,
            prompt=(),
            arrived_at=now,
            ends=frozenset(),
            tokens=[],
            length_max=1,
            errand=errand,
        )
        return sequence
