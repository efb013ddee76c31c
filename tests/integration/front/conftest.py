"""The fronts on loopback over an engine that follows a script; no worker, no model."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import cache

import pytest
from aiohttp import web
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from adex_proto.adapter import AdapterKey, AdapterVersion, Tier
from adex_proto.errors import (
    AdapterNotFound,
    Overloaded,
    StepFailed,
    ValidationError,
    WorkerLost,
)
from adex_proto.grammar import Grammar
from adex_proto.outcome import SampledToken, TokenScore, WorkerInfo
from adex_proto.sampling import FinishReason
from adex_scheduler.engine import (
    AdapterStatus,
    ControlRequest,
    Engine,
    EngineRequest,
    Journey,
    Piece,
    Progress,
)
from adex_scheduler.front.listener import runner_of
from adex_scheduler.front.listing import public_names
from adex_scheduler.front.ports import FrontOptions, Serving, Traces
from adex_scheduler.front.rpc import RpcFront
from adex_scheduler.front.tenants import Directory
from adex_scheduler.metrics import SchedulerMetrics, Sources
from adex_scheduler.testing.fake_worker import FakeWorker, worker_info
from adex_scheduler.testing.link import FakeLink
from adex_scheduler.text.detokenize import Detokenizer
from adex_scheduler.text.stops import StopMatcher
from adex_scheduler.text.tokenizer import Tokenizer

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    "{% if messages[0]['content'] == 'refuse me' %}{{ raise_exception('no such luck') }}{% endif %}"
)
ANSWER = "Hello, Zürich 🙂! The end."


@cache
def tokenizer() -> Tokenizer:
    fast = FastTokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    fast.train_from_iterator(["Hello, the end. A small text to learn from"] * 2, trainer)
    config = {"chat_template": TEMPLATE, "eos_token": "<|end|>"}
    return Tokenizer({"tokenizer.json": fast.to_str(), "tokenizer_config.json": json.dumps(config)})


INFO = WorkerInfo(
    model_id="/models/tiny",
    architecture="LlamaForCausalLM",
    dtype="float32",
    device="cpu",
    layers=2,
    vocabulary=320,
    positions_max=256,
    block_tokens=16,
    page_bytes=1024,
    pages=64,
    slots_max=63,
    host_bytes=2**20,
    disk_bytes=2**20,
    rank_max=64,
    step_tokens_max=256,
    step_sequences_max=16,
    eos_token_ids=(0,),
)


@dataclass
class ScriptedEngine:
    """Answers ANSWER and an end token to everyone; adapters whose names say so go wrong."""

    info: WorkerInfo | None = INFO
    ready: bool = True
    answer: str = ANSWER
    requests: list[EngineRequest] = field(default_factory=list)
    grammars: list[Grammar] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    pause_s: float = 0.0
    logprobs: dict[int, float] = field(default_factory=dict[int, float])
    """What the tokens of a request's texts have, by the text's place; -0.5 where not said."""
    hold: asyncio.Event = field(default_factory=asyncio.Event)

    async def stream(
        self, request: EngineRequest, journey: Journey | None = None
    ) -> AsyncGenerator[Piece, None]:
        self.requests.append(request)
        name = request.key.name if request.key else ""
        try:
            if name == "missing":
                raise AdapterNotFound(f"no adapter {name!r}", field="adapter_id")
            if name == "busy":
                raise Overloaded("the queue is full", retry_after_s=2.5)
            if name == "broken":
                raise RuntimeError("a bug")
            async for piece in self._pieces(request, name):
                yield piece
        finally:
            self.ended.append(request.request_id)

    async def _pieces(self, request: EngineRequest, name: str) -> AsyncGenerator[Piece, None]:
        ids = [*tokenizer().encode(self.answer), 0]
        ids = ids[: request.sampling.max_new_tokens]
        detokenizer = Detokenizer(
            tokenizer(), request.token_ids, skip_special_tokens=request.skip_special_tokens
        )
        matcher = StopMatcher(request.stops, include_stop=request.include_stop)
        for index, token_id in enumerate(ids):
            if name == "slow":
                await asyncio.sleep(0.3)
            if name == "hangs" and index == 1:
                await self.hold.wait()
            if name == "dies" and index == 2:
                raise WorkerLost("the worker went away")
            if name == "fails" and index == 0:
                raise StepFailed("logits are not finite")
            if name == "breaks" and index == 2:
                raise RuntimeError("a bug")
            await asyncio.sleep(self.pause_s)
            own = detokenizer.push(token_id)
            text, found = matcher.push(own)
            finish = None
            if found:
                finish = FinishReason.STOP
            elif token_id == 0:
                finish = FinishReason.EOS
            elif index == len(ids) - 1:
                finish = FinishReason.LENGTH
            if finish is not None and not found:
                text += matcher.push(detokenizer.flush())[0] + matcher.flush()
            top = tuple(
                (other, -float(other + 1)) for other in range(request.sampling.logprobs or 0)
            )
            logprob = None if request.sampling.logprobs is None else self._logprob(request)
            special = tokenizer().is_special(token_id)
            shown = tokenizer().token_text(token_id) if special else own
            token = SampledToken(1, token_id, logprob, top)
            scores: tuple[TokenScore, ...] = ()
            asked = request.sampling.prompt_logprobs
            if index == 0 and asked is not None:
                scored = request.token_ids[1:]
                scores = tuple(TokenScore(-1.5, ((one, -1.5),)[:asked]) for one in scored)
            yield Piece(token, shown, special, text, finish, scores)
            if finish is not None:
                return

    def _logprob(self, request: EngineRequest) -> float:
        place = request.request_id.partition("-")[2] or "0"
        return self.logprobs.get(int(place), -0.5)

    async def control(self, request: ControlRequest) -> AsyncGenerator[Progress, None]:
        if request.key.name == "missing":
            raise AdapterNotFound(f"no adapter {request.key.name!r}", field="adapter_id")
        yield Progress("d" * 64, Tier.DEVICE, done=True)

    def adapter(self, key: AdapterKey) -> AdapterStatus | None:
        return next((status for status in self.adapters(1) if status.key == key), None)

    async def prepare_grammar(self, grammar: Grammar) -> None:
        self.grammars.append(grammar)
        if "[unmatchable]" in grammar.text:
            raise ValidationError("`grammar` cannot be honoured: so it is", field="grammar")

    def adapters(self, most: int) -> list[AdapterStatus]:
        key = AdapterKey("", "local", "tone")
        return [AdapterStatus(key, "d" * 64, Tier.DEVICE, 4096, 8, 0, 1.0)]

    def scene(self) -> None:
        return None


@dataclass
class CountingMeters:
    """Meters that remember."""

    answered: list[tuple[str, str]] = field(default_factory=list)
    firsts: int = 0
    nexts: int = 0
    counted: list[int] = field(default_factory=list)

    def request_answered(self, endpoint: str, code: str, seconds: float) -> None:
        assert seconds >= 0
        self.answered.append((endpoint, code))

    def first_token(self, seconds: float, journey: Journey) -> None:
        self.firsts += 1

    def next_token(self, seconds: float) -> None:
        self.nexts += 1

    def sequence_ended(self, seconds: float, journey: Journey, generated: int) -> None:
        self.counted.append(generated)

    def exposition(self) -> bytes:
        return b"adex_requests_total 1\n"


@dataclass
class Door:
    """A running front and what stands behind it."""

    url: str
    engine: ScriptedEngine
    meters: CountingMeters
    serving: Serving


@pytest.fixture
def the_tokenizer() -> Tokenizer:
    return tokenizer()


@pytest.fixture
def serving_of() -> Callable[..., Serving]:
    def build(**options: object) -> Serving:
        aliases = {"friendly": AdapterKey("", "local", "/adapters/friendly")}
        directory = Directory(("/models/tiny", "tiny"), aliases)
        front = FrontOptions(model_id="/models/tiny", version="0.1.0", **options)  # type: ignore[arg-type]
        return Serving.over(ScriptedEngine(), tokenizer(), directory, CountingMeters(), front)

    return build


@asynccontextmanager
async def _opened(serving: Serving) -> AsyncIterator[Door]:
    runner = runner_of(serving, close_s_max=5.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    assert isinstance(serving.engine, ScriptedEngine)
    assert isinstance(serving.meters, CountingMeters)
    try:
        yield Door(f"http://127.0.0.1:{port}", serving.engine, serving.meters, serving)
    finally:
        await runner.cleanup()


@pytest.fixture
def opened() -> Callable[[Serving], AbstractAsyncContextManager[Door]]:
    return _opened


@pytest.fixture
async def door(serving_of: Callable[..., Serving]) -> AsyncIterator[Door]:
    async with _opened(serving_of()) as opened_door:
        yield opened_door


@dataclass
class Live:
    """Both doors over a real engine, whose worker computes nothing."""

    url: str
    rpc_address: str
    worker: FakeWorker
    engine: Engine
    link: FakeLink

    def publish(self, name: str, size: int = 300, *, digest: str = "", tenant: str = "") -> None:
        """Let a source have an adapter: the hub one of a tenant's own, else the local folders."""
        source = "hub" if tenant else "local"
        version = AdapterVersion(digest or f"digest-of-{name}", size, 8, 4)
        self.worker.published[AdapterKey(tenant, source, name)] = version


@asynccontextmanager
async def _live(
    *, dialects: tuple[str, ...] = (), traces: Traces | None = None, **changes: object
) -> AsyncIterator[Live]:
    worker = FakeWorker(worker_info(vocabulary=320))
    directory = Directory(("base",))

    def names() -> tuple[list[str], list[str]]:
        statistics = engine.statistics()
        resident = statistics.on_device if statistics else ()
        return public_names(directory, resident), public_names(directory, engine.waiting_names())

    metrics = SchedulerMetrics(
        Sources(
            lambda: engine.statistics(),
            lambda: engine.info,
            lambda: engine.longest_wait_s(),
            names,
        ),
        dialects=dialects,
        model_name="base",
    )
    link = FakeLink(worker)
    engine = Engine(link, tokenizer(), observer=metrics)
    options = FrontOptions(model_id="base", version="0", **changes)  # type: ignore[arg-type]
    serving = Serving.over(engine, tokenizer(), directory, metrics, options, traces)
    runner = runner_of(serving, close_s_max=5.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    rpc = RpcFront(serving, "127.0.0.1:0")
    rpc_port = await rpc.start()
    running = asyncio.create_task(engine.run())
    try:
        await engine.wait_ready()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield Live(url, f"127.0.0.1:{rpc_port}", worker, engine, link)
    finally:
        await rpc.stop(1.0)
        await runner.cleanup()
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


@pytest.fixture
def live() -> Callable[..., AbstractAsyncContextManager[Live]]:
    return _live
