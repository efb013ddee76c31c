"""A worker process, the hand that drives it over the scheduler's link, and a second opinion."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from adex_kernels.layout import ModelShape, Module
from adex_proto.adapter import AdapterKey
from adex_scheduler.testing.hand import Hand
from adex_worker.testing import tiny_config, tiny_model, tiny_shape, write_random_adapter

# Two floating-point sums in different orders may swap tokens that are this close.
MARGIN = 1e-3


@dataclass(slots=True)
class WorkerProcess:
    """A worker running on its own, and where it listens."""

    address: str
    process: subprocess.Popen[bytes]
    log: Path

    def stop(self) -> int:
        """Ask it to stop, as an init system does. Returns: its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


def start_worker(model: Path, address: str, folder: Path, *flags: str) -> WorkerProcess:
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "worker.log"
    command = [sys.executable, "-m", "adex_worker", "--model-id", str(model), "--device", "cpu"]
    command += ["--dtype", "float32", "--device-memory", "16MiB", "--host-memory", "64MiB"]
    command += ["--disk-memory", "64MiB", "--cache-dir", str(folder / "cache"), "--threads", "1"]
    command += ["--listen", address, *flags]
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stderr=stream, env=os.environ | {"TQDM_DISABLE": "1"})
    started = WorkerProcess(address, process, log)
    deadline_s = time.monotonic() + 60
    while b" ready on " not in (text := log.read_bytes()):
        if process.poll() is not None or time.monotonic() > deadline_s:
            process.kill()
            raise AssertionError(f"the worker did not start: {text.decode()}")
        time.sleep(0.05)
    line = next(line for line in text.decode().splitlines() if " ready on " in line)
    started.address = line.split(" ready on ")[1].split(": ")[0]
    return started


@dataclass(frozen=True, slots=True)
class Reference:
    """transformers and PEFT over the same files, one sequence at a time in float32, no cache."""

    model: Any

    def greedy(
        self, prompt: Sequence[int], adapter: Path | None = None, tokens: int = 12
    ) -> tuple[list[int], int]:
        """Returns: the tokens, and how many of them are beyond doubt (MARGIN)."""
        if adapter is None:
            return self._greedy(self.model, prompt, tokens)
        wrapped = PeftModel.from_pretrained(self.model, str(adapter)).eval()
        try:
            return self._greedy(wrapped, prompt, tokens)
        finally:
            wrapped.unload()

    @torch.inference_mode()
    def logits(self, token_ids: Sequence[int]) -> torch.Tensor:
        """[vocabulary] after the last token."""
        logits: torch.Tensor = self.model(torch.tensor([list(token_ids)])).logits[0, -1]
        return logits

    @torch.inference_mode()
    def all_logits(self, token_ids: Sequence[int], adapter: Path | None = None) -> torch.Tensor:
        """[tokens, vocabulary] after each token."""
        inputs = torch.tensor([list(token_ids)])
        if adapter is None:
            logits: torch.Tensor = self.model(inputs).logits[0]
            return logits
        wrapped = PeftModel.from_pretrained(self.model, str(adapter)).eval()
        try:
            adapted: torch.Tensor = wrapped(inputs).logits[0]
            return adapted
        finally:
            wrapped.unload()

    def generate(self, prompt: Sequence[int], tokens: int, **options: Any) -> list[int]:
        """What transformers' own generate() says, greedily, without ever ending."""
        inputs = torch.tensor([list(prompt)])
        said = self.model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            do_sample=False,
            max_new_tokens=tokens,
            eos_token_id=None,
            pad_token_id=0,
            **options,
        )
        ids: list[int] = said[0, len(prompt) :].tolist()
        return ids

    @torch.inference_mode()
    def _greedy(self, model: Any, prompt: Sequence[int], tokens: int) -> tuple[list[int], int]:
        token_ids = list(prompt)
        sure: int | None = None
        for index in range(tokens):
            best = model(torch.tensor([token_ids])).logits[0, -1].topk(2)
            if sure is None and float(best.values[0] - best.values[1]) < MARGIN:
                sure = index
            token_ids.append(int(best.indices[0]))
        return token_ids[len(prompt) :], tokens if sure is None else sure


@dataclass(frozen=True, slots=True)
class World:
    """A model, a root of adapters, and a worker that serves them."""

    model: Path
    adapters: Path
    shape: ModelShape
    vocabulary: int
    worker: WorkerProcess
    reference: Reference

    def key(self, name: str) -> AdapterKey:
        return AdapterKey("", "local", name)

    def prompt(self, length: int, seed: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        ids: list[int] = torch.randint(3, self.vocabulary, (length,), generator=generator).tolist()
        return ids


_ALL = tuple(Module)
_ATTENTION = (Module.Q, Module.K, Module.V, Module.O)
_MLP = (Module.GATE, Module.UP, Module.DOWN)
# Every rank, every choice of modules, and everything in adapter_config.json that changes the scale.
ADAPTERS: dict[str, dict[str, Any]] = {
    "rank-1-all": {"rank": 1},
    "rank-2-attention": {"rank": 2, "modules": _ATTENTION},
    "rank-4-mlp": {"rank": 4, "modules": _MLP},
    "rank-8-all": {"rank": 8},
    "rank-8-query-value": {"rank": 8, "modules": (Module.Q, Module.V)},
    "rank-12-all": {"rank": 12, "alpha": 7.0},
    "rank-16-rslora": {"rank": 16, "use_rslora": True},
    "rank-24-mlp-rslora": {"rank": 24, "modules": _MLP, "use_rslora": True},
    "rank-48-attention": {"rank": 48, "modules": _ATTENTION},
    "rank-64-all": {"rank": 64},
    "second-layer-only": {"rank": 8, "layers": [1]},
    "first-layer-down-only": {"rank": 4, "layers": [0], "modules": (Module.DOWN,)},
    "rank-pattern": {"rank": 8, "rank_pattern": {"q_proj": 32, "down_proj": 3}},
    "alpha-pattern": {"rank": 8, "alpha": 8.0, "alpha_pattern": {"v_proj": 32.0, "up_proj": 2.0}},
    "both-patterns-rslora": {
        "rank": 6,
        "rank_pattern": {"layers.1.self_attn.o_proj": 20},
        "alpha_pattern": {"gate_proj": 3.0},
        "use_rslora": True,
    },
}


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def adapter_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("adapters")
    shape = tiny_shape(tiny_config())
    for seed, (name, options) in enumerate(ADAPTERS.items()):
        write_random_adapter(root / name, shape, seed=seed, strength=0.5, **options)
    return root


@pytest.fixture(scope="module", params=["unix", "tcp"])
def world(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    model_folder: Path,
    adapter_root: Path,
) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("worker")
    address = f"unix://{folder}/w.sock" if request.param == "unix" else "127.0.0.1:0"
    flags = ("--local-adapter-root", str(adapter_root), "--max-batch-tokens", "128")
    worker = start_worker(model_folder, address, folder, *flags)
    config = tiny_config()
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    try:
        yield World(
            model_folder,
            adapter_root,
            tiny_shape(config),
            config["vocab_size"],
            worker,
            Reference(model),
        )
    finally:
        assert worker.stop() == 0, worker.log.read_text()


@pytest.fixture
async def hand(world: World) -> AsyncIterator[Hand]:
    hand = Hand(world.worker.address)
    await hand.connect()
    yield hand
    await hand.close()


@pytest.fixture
def new_worker(model_folder: Path, tmp_path: Path) -> Iterator[Callable[..., WorkerProcess]]:
    """Start workers of this test's own; they are ended with it."""
    started: list[WorkerProcess] = []

    def start(address: str = "127.0.0.1:0", *flags: str) -> WorkerProcess:
        worker = start_worker(model_folder, address, tmp_path / f"w{len(started)}", *flags)
        started.append(worker)
        return worker

    yield start
    for worker in started:
        worker.process.kill()
        worker.process.wait()


@pytest.fixture(scope="session")
def adapter_names() -> list[str]:
    return list(ADAPTERS)
