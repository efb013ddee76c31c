"""Workloads from a seed: which adapters are asked for, when, and for how long.

Each generator is a function of a `Load` and its own options, and equal inputs give equal traces.
`RandomState` is numpy's legacy generator, whose streams never change between releases.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from adex_scheduler.simulate.trace import TracedRequest, adapter_name

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

RANK_SETS: dict[str, tuple[int, ...]] = {
    "8": (8,),
    "16": (16,),
    "64": (64,),
    "mix": (8, 16, 32, 64, 128),
}


@dataclass(frozen=True, slots=True)
class Load:
    """What every workload is asked for.

    Adapter i has rank `ranks[i % len(ranks)]`; lengths are uniform in [low, high).
    """

    adapters: int
    rate: float
    """Requests per second, the mean over the trace."""
    duration_s: float
    seed: int = 0
    ranks: tuple[int, ...] = (16,)
    prompt_range: tuple[int, int] = (8, 512)
    output_range: tuple[int, int] = (8, 512)

    @property
    def requests(self) -> int:
        return max(int(self.rate * self.duration_s), 1)


def slora(load: Load, *, alpha: float = 1.0, cv: float = 1.0) -> list[TracedRequest]:
    """S-LoRA's benchmark, draw for draw: a power law whose alpha 1 is uniform, gamma arrivals.

    Source: Sheng et al. 2023, arXiv:2311.03285, the released code's order of draws.
    """
    chance = np.random.RandomState(load.seed)
    count = load.requests
    chosen = (chance.power(alpha, count) * load.adapters).astype(int)
    prompts = chance.randint(*load.prompt_range, count)
    outputs = chance.randint(*load.output_range, count)
    gaps = chance.gamma(1 / (cv * cv), cv * cv / load.rate, count)
    return _requests(load, np.cumsum(gaps), chosen, prompts, outputs)


def zipf(load: Load, *, alpha: float = 1.0, cv: float = 1.0) -> list[TracedRequest]:
    """The k-th most popular adapter with weight k**-alpha; ids are dealt to places at random."""
    chance = np.random.RandomState(load.seed)
    chosen = _ids_by_place(load, chance)[_places(load, chance, load.requests, alpha)]
    return _with_lengths(load, chance, _arrivals(load, chance, cv), chosen)


def uniform(load: Load, *, cv: float = 1.0) -> list[TracedRequest]:
    """Every adapter as likely as every other."""
    chance = np.random.RandomState(load.seed)
    chosen = chance.randint(0, load.adapters, load.requests)
    return _with_lengths(load, chance, _arrivals(load, chance, cv), chosen)


def distinct(load: Load) -> list[TracedRequest]:
    """Every request names another adapter, round and round: none is soon asked for again."""
    chance = np.random.RandomState(load.seed)
    chosen = np.arange(load.requests) % load.adapters
    return _with_lengths(load, chance, _arrivals(load, chance, 1.0), chosen)


def geometric(load: Load, *, ratio: float = 1.5) -> list[TracedRequest]:
    """Punica's popularity: the k-th adapter has floor(ratio**k) requests, in random order.

    Source: Chen et al. 2023, arXiv:2310.18547; there called Zipf-1.5.
    """
    chance = np.random.RandomState(load.seed)
    count, shares = load.requests, list[int]()
    while sum(shares) < count:
        left = count - sum(shares)
        more = len(shares) < load.adapters - 1
        shares.append(min(max(int(ratio ** len(shares)), 1), left) if more else left)
    chosen = chance.permutation(np.repeat(np.arange(len(shares)), shares))
    return _with_lengths(load, chance, _arrivals(load, chance, 1.0), chosen)


def drift(
    load: Load, *, alpha: float = 1.0, period_s: float = 300.0, share: float = 0.2
) -> list[TracedRequest]:
    """Zipf whose popularity moves: each `period_s`, `share` of the ids change places at random."""
    chance = np.random.RandomState(load.seed)
    times = _arrivals(load, chance, 1.0)
    places = _places(load, chance, load.requests, alpha)
    ids = _ids_by_place(load, chance)
    chosen = np.empty(load.requests, dtype=np.int64)
    periods = (times // period_s).astype(int)
    for period in range(int(periods[-1]) + 1):
        if period:
            moved = chance.choice(load.adapters, int(share * load.adapters), replace=False)
            ids[moved] = ids[chance.permutation(moved)]
        chosen[periods == period] = ids[places[periods == period]]
    return _with_lengths(load, chance, times, chosen)


def sessions(
    load: Load,
    *,
    turns: float = 6.0,
    think_s: float = 15.0,
    alpha: float = 0.0,
    context_max: int = 4096,
) -> list[TracedRequest]:
    """Conversations: geometric many turns with one adapter, exponential pauses, growing prompts.

    Sessions begin as a Poisson process, their adapters by Zipf(alpha), uniform by default: what
    repeats then repeats soon or never. A conversation that would outgrow `context_max` starts over.
    """
    chance = np.random.RandomState(load.seed)
    rate = load.rate / turns
    found: list[TracedRequest] = []
    # Long enough before the trace that as many conversations go on at its start as at its end.
    begins, session = -4 * turns * think_s, 0
    ids = _ids_by_place(load, chance)
    while begins < load.duration_s:
        index = int(ids[_places(load, chance, 1, alpha)[0]])
        time_s, context = begins, 0
        for _ in range(int(chance.geometric(1 / turns))):
            prompt = context + int(chance.randint(*load.prompt_range))
            output = int(chance.randint(*load.output_range))
            if prompt + output > context_max:
                prompt, session = prompt - context, session + 1
            if 0 <= time_s < load.duration_s:
                found.append(_request(load, time_s, index, prompt, output, session=session))
            context = prompt + output
            time_s += chance.exponential(think_s)
        begins += chance.exponential(1 / rate)
        session += 1
    return sorted(found, key=lambda request: request.time_s)


def instructed(load: Load, *, shared: int = 1024, alpha: float = 1.0) -> list[TracedRequest]:
    """Zipf, each prompt after the same `shared` tokens as all others with its adapter: what it is
    told to be.
    """
    return [
        replace(one, prompt_tokens=one.prompt_tokens + shared, shared_tokens=shared)
        for one in zipf(load, alpha=alpha)
    ]


def tenant_flood(
    load: Load, *, tenants: int = 8, factor: float = 10.0, alpha: float = 1.0
) -> list[TracedRequest]:
    """Equal tenants, of whom the first asks `factor` times its share in the middle third.

    The others go on at their own pace, so the total rate rises for that time. Each tenant has its
    own adapters: adapter i belongs to tenant i modulo `tenants`.
    """
    chance = np.random.RandomState(load.seed)
    each = load.rate / tenants
    found: list[TracedRequest] = []
    third = load.duration_s / 3
    for tenant in range(tenants):
        times = _poisson(chance, each, 0.0, load.duration_s)
        if tenant == 0:
            flood = _poisson(chance, each * (factor - 1), third, 2 * third)
            times = np.sort(np.concatenate([times, flood]))
        own = max(load.adapters // tenants, 1)
        weights = np.arange(1, own + 1, dtype=np.float64) ** -alpha
        places = chance.choice(own, len(times), p=weights / weights.sum())
        for time_s, place in zip(times, places, strict=True):
            prompt = int(chance.randint(*load.prompt_range))
            output = int(chance.randint(*load.output_range))
            index = int(place) * tenants + tenant
            found.append(_request(load, time_s, index, prompt, output, tenant=f"tenant-{tenant}"))
    return sorted(found, key=lambda request: request.time_s)


def cold_storm(load: Load, *, per_minute: float = 60.0, alpha: float = 1.0) -> list[TracedRequest]:
    """Zipf, and beside it `per_minute` adapters a minute that nobody has ever asked for."""
    chance = np.random.RandomState(load.seed)
    ids = _ids_by_place(load, chance)
    chosen = ids[_places(load, chance, load.requests, alpha)]
    usual = _with_lengths(load, chance, _arrivals(load, chance, 1.0), chosen)
    times = _poisson(chance, per_minute / 60, 0.0, load.duration_s)
    fresh = load.adapters + np.arange(len(times))
    return sorted(
        [*usual, *_with_lengths(load, chance, times, fresh)], key=lambda request: request.time_s
    )


def functions(
    load: Load, *, on_s: float = 60.0, off_s: float = 240.0, sigma: float = 2.0
) -> list[TracedRequest]:
    """The shape of serverless functions: each adapter is on for a while, then off for long.

    Rates are log-normal over adapters with `sigma`, on and off times exponential; the whole is
    scaled to the load's rate. After Shahrad et al. 2020 (Azure Functions); no trace is shipped.
    """
    chance = np.random.RandomState(load.seed)
    weights = chance.lognormal(0.0, sigma, load.adapters)
    rates = load.rate * weights / weights.sum() * (on_s + off_s) / on_s
    times: list[Floats] = []
    chosen: list[Ints] = []
    for index, rate in enumerate(rates):
        on = bool(chance.random_sample() < on_s / (on_s + off_s))
        now = 0.0
        while now < load.duration_s:
            until = min(now + chance.exponential(on_s if on else off_s), load.duration_s)
            if on:
                found = _poisson(chance, float(rate), now, until)
                times.append(found)
                chosen.append(np.full(len(found), index))
            now, on = until, not on
    when = np.concatenate(times)
    order = np.argsort(when, kind="stable")
    return _with_lengths(load, chance, when[order], np.concatenate(chosen)[order])


Workload = Callable[..., list[TracedRequest]]

WORKLOADS: dict[str, Workload] = {
    "slora": slora,
    "zipf": zipf,
    "uniform": uniform,
    "distinct": distinct,
    "geometric": geometric,
    "drift": drift,
    "sessions": sessions,
    "instructed": instructed,
    "tenant-flood": tenant_flood,
    "cold-storm": cold_storm,
    "functions": functions,
}


def _poisson(chance: np.random.RandomState, rate: float, start: float, stop: float) -> Floats:
    count = chance.poisson(rate * (stop - start))
    return np.sort(chance.uniform(start, stop, count))


def _arrivals(load: Load, chance: np.random.RandomState, cv: float) -> Floats:
    return np.cumsum(chance.gamma(1 / (cv * cv), cv * cv / load.rate, load.requests))


def _ids_by_place(load: Load, chance: np.random.RandomState) -> Ints:
    return chance.permutation(load.adapters)


def _places(load: Load, chance: np.random.RandomState, count: int, alpha: float) -> Ints:
    """Draws from Zipf(alpha) over [0, adapters); 0 is the most popular."""
    shares = np.cumsum(np.arange(1, load.adapters + 1, dtype=np.float64) ** -alpha)
    places: Ints = np.searchsorted(shares, chance.random_sample(count) * shares[-1], side="right")
    return places


def _with_lengths(
    load: Load, chance: np.random.RandomState, times: Floats, chosen: Ints
) -> list[TracedRequest]:
    prompts = chance.randint(*load.prompt_range, len(chosen))
    outputs = chance.randint(*load.output_range, len(chosen))
    return _requests(load, times, chosen, prompts, outputs)


def _requests(
    load: Load,
    times: Floats,
    chosen: Sequence[int] | Ints,
    prompts: Sequence[int] | Ints,
    outputs: Sequence[int] | Ints,
) -> list[TracedRequest]:
    return [
        _request(load, time_s, int(index), int(prompt), int(output))
        for time_s, index, prompt, output in zip(times, chosen, prompts, outputs, strict=True)
    ]


def _request(
    load: Load,
    time_s: float,
    index: int,
    prompt: int,
    output: int,
    *,
    tenant: str = "",
    session: int | None = None,
) -> TracedRequest:
    rank = load.ranks[index % len(load.ranks)]
    return TracedRequest(float(time_s), tenant, adapter_name(index), prompt, output, rank, session)
