"""When a request's first token would come: its turn in the queue, its adapter's way, its prompt.

Modelled from what has been measured: how often places come free, what the links cost and what steps
cost. It is asked only for requests that name a deadline.
"""

from dataclasses import dataclass

from adex_proto.adapter import AdapterKey, Tier
from adex_scheduler.core.adapters import Residence
from adex_scheduler.core.admission import Pace
from adex_scheduler.core.batch import Batch
from adex_scheduler.core.links import Links
from adex_scheduler.core.residency import Residency
from adex_scheduler.core.sequence import Tenant
from adex_scheduler.core.step_time import STRIDE, StepTime
from adex_scheduler.core.tiers import Tiers


@dataclass(slots=True)
class Forecast:
    """Seconds until a first token, as far as can be told now."""

    links: Links
    pace: Pace
    step: StepTime

    def first_token_s(
        self,
        key: AdapterKey | None,
        tokens: int,
        *,
        payer: Tenant | None,
        residency: Residency,
        tiers: Tiers,
        batch: Batch,
    ) -> float:
        """For a request of `tokens` prompt tokens that arrives now.

        While it waits in the queue its adapter is under way, so the longer of the two counts.
        """
        queue = self.queue_s(payer, tiers, batch)
        load = self.load_s(key, residency, tiers) if key is not None else 0.0
        steps_ahead = sum(self.step.seconds(f.decodes, f.prompt_tokens) for f in batch.flights)
        return max(queue, load) + steps_ahead + self.prompt_s(batch.prompt_tokens + tokens, batch)

    def prompt_s(self, tokens: int, batch: Batch) -> float:
        """The steps that compute so many prompt tokens, with those who run beside them.

        Each is taken to show that the next may have a stride more, up to what there is time for.
        """
        beside = min(batch.running, batch.step_tokens_max - 1)
        room, steps, left = batch.prompt_room(beside, batch.prompts + 1), 0, tokens
        most = batch.prompt_room(beside, batch.prompts + 1, in_strides=False)
        while left > room and room < most:
            left, steps, room = left - room, steps + 1, min(STRIDE * room, most)
        steps += -(-left // room)
        fixed_s = self.step.alone.seconds(beside) + self.step.prompt_fixed_s
        return steps * fixed_s + tokens * self.step.s_per_prompt_token

    def queue_s(self, payer: Tenant | None, tiers: Tiers, batch: Batch) -> float:
        """Until its turn comes. Tenants take turns, so at most as many of each other's as of its
        own go first; places come free as others finish.
        """
        ready = len(tiers.ready)
        if not ready and batch.running < batch.running_max:
            return 0.0
        own = payer.waiting if payer is not None else 0
        ahead = min(ready, (own + 1) * max(tiers.ready.tenants_waiting, 1))
        return max(ahead, 1) * self.pace.seconds_per_finish

    def load_s(self, key: AdapterKey, residency: Residency, tiers: Tiers) -> float:
        """Until its adapter is on the device, behind what is under way before it."""
        alias = residency.names.get(key)
        adapter = tiers.adapters.get(alias.digest or "") if alias is not None else None
        stage, page_in = self.links.into(Tier.HOST), self.links.into(Tier.DEVICE)
        if adapter is None:
            fetch = self.links.into(Tier.DISK, key.source)
            behind = len(tiers.fetch_line(key)) / max(residency.fetching, 1)
            return (1 + behind) * fetch.cost.mean_s + stage.cost.mean_s + page_in.cost.mean_s
        if adapter.residence in (Residence.DEVICE, Residence.DRAINING):
            return 0.0
        size = adapter.version.bundle_bytes
        seconds = page_in.backlog_s + page_in.seconds(size)
        if adapter.at_hand < Tier.HOST:
            behind = len(tiers.to_stage) * stage.cost.mean_s
            seconds += stage.backlog_s + behind + stage.seconds(size)
        return seconds
