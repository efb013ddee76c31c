"""Traffic over many adapters: closed loop or Poisson arrivals, each request noting where it began.

A closed loop counts whole requests: callers that wait for each other's prompts ask in waves, and a
window of time would hold now more of a wave and now less. Each caller's requests before those that
count warm the tiers up, and it goes on asking until the last caller's are answered. Of Poisson
arrivals those count that come inside a window.
"""

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import aiohttp

PROMPT_TOKENS = 32
NEW_TOKENS = 32
VOCABULARY = 8192


@dataclass(slots=True)
class Request:
    """One answer: seconds to the first token, between tokens, and the tier its adapter was in."""

    adapter: str
    sent_s: float
    tier: str = ""
    first_s: float = 0.0
    ends_s: list[float] = field(default_factory=list)
    error: str = ""

    @property
    def gaps_s(self) -> list[float]:
        """Times between tokens."""
        return [later - sooner for sooner, later in itertools.pairwise(self.ends_s)]


@dataclass(slots=True)
class Answers:
    """All requests of one run; which of them count is for those who ask to say."""

    requests: list[Request] = field(default_factory=list)

    def failures(self) -> list[str]:
        return [f"{r.adapter}: {r.error}" for r in self.requests if r.error]


@dataclass(slots=True)
class Turns(Answers):
    """A closed loop's: of each caller, one after the other, the requests that count."""

    callers: list[list[Request]] = field(default_factory=list)

    def counted(self) -> list[Request]:
        return [request for turns in self.callers for request in turns]

    def tokens_per_s(self) -> float:
        """What all callers have together, each from its first request's start to its last's end."""
        return sum(
            sum(len(r.ends_s) for r in turns) / (turns[-1].ends_s[-1] - turns[0].sent_s)
            for turns in self.callers
        )


@dataclass(slots=True)
class Window(Answers):
    """Of arrivals, `start_s` and `stop_s` are the part that counts."""

    start_s: float = 0.0
    stop_s: float = 0.0

    def counted(self) -> list[Request]:
        """Those that were sent inside the window and answered."""
        return [r for r in self.requests if self.start_s <= r.sent_s < self.stop_s and r.ends_s]

    def tokens_per_s(self) -> float:
        """Tokens that came inside the window, whoever asked for them."""
        inside = sum(self.start_s <= e < self.stop_s for r in self.requests for e in r.ends_s)
        return inside / (self.stop_s - self.start_s)


def zipf_picker(names: Sequence[str], exponent: float, seed: int) -> Callable[[], str]:
    """Draws names with P(rank k) proportional to k**-exponent; 0 is uniform."""
    chance = random.Random(seed)
    order = list(names)
    chance.shuffle(order)
    cumulative = list(itertools.accumulate((k + 1) ** -exponent for k in range(len(order))))
    return lambda: chance.choices(order, cum_weights=cumulative)[0]


async def closed_loop(
    url: str, pick: Callable[[], str], *, streams: int, warm_turns: int, turns: int
) -> Turns:
    """`streams` callers, each asking again as soon as it is answered, `turns` times that count."""
    run = Turns()
    counting = streams
    async with _session() as session:

        async def caller() -> None:
            nonlocal counting
            for _ in range(warm_turns):
                await ask(session, url, pick(), run.requests)
            run.callers.append(
                [await ask(session, url, pick(), run.requests) for _ in range(turns)]
            )
            counting -= 1
            while counting:
                await ask(session, url, pick(), run.requests)

        await asyncio.gather(*(caller() for _ in range(streams)))
    return run


async def open_loop(
    url: str, pick: Callable[[], str], *, per_s: float, warm_s: float, seconds: float, seed: int
) -> Window:
    """Poisson arrivals at `per_s` requests a second, however many are under way."""
    start_s = time.perf_counter() + warm_s
    window = Window(start_s=start_s, stop_s=start_s + seconds)
    chance = random.Random(seed)
    async with _session() as session, asyncio.TaskGroup() as tasks:
        due = time.perf_counter()
        while due < window.stop_s:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.create_task(ask(session, url, pick(), window.requests))
            due += chance.expovariate(per_s)
    return window


async def ask(
    session: aiohttp.ClientSession,
    url: str,
    adapter: str,
    requests: list[Request],
    new_tokens: int = NEW_TOKENS,
    prompt_tokens: int = PROMPT_TOKENS,
) -> Request:
    """One streamed request through `adapter` ("" is the base model), appended to `requests`."""
    prompt = " ".join(f"w{random.randrange(2, VOCABULARY)}" for _ in range(prompt_tokens))
    parameters = {"max_new_tokens": new_tokens, "ignore_eos_token": True, **_naming(adapter)}
    request = Request(adapter, time.perf_counter())
    requests.append(request)
    body = {"inputs": prompt, "parameters": parameters}
    async with session.post(f"{url}/generate_stream", json=body) as response:
        request.tier = response.headers.get("x-adapter-tier", "")
        if response.status != 200:
            request.error = f"{response.status} {(await response.text())[:200]}"
            return request
        async for line in response.content:
            if not line.startswith(b"data:"):
                continue
            now = time.perf_counter()
            if b'"error"' in line:
                request.error = line[5:205].decode(errors="replace")
                return request
            if not request.ends_s:
                request.first_s = now - request.sent_s
            request.ends_s.append(now)
    return request


def _naming(adapter: str) -> dict[str, str]:
    if not adapter:
        return {}
    if adapter.startswith("s3://"):
        return {"adapter_id": adapter, "adapter_source": "s3"}
    return {"adapter_id": adapter}


def _session() -> aiohttp.ClientSession:
    timeout = aiohttp.ClientTimeout(total=None)
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout)
