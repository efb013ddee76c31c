"""From options to a worker ready to serve: model, pool, adapter store, runner, step thread.

Everything here blocks, for minutes where a model is large, so it runs beside the event loop.
"""

import gc
import importlib
import importlib.util
import logging
import os
import shutil
import sys
import time
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import torch

from adex_kernels.native import library
from adex_kernels.native.panels import Weight
from adex_proto.errors import AdexError, ValidationError
from adex_proto.outcome import WorkerInfo
from adex_worker import native, recording
from adex_worker.adapters.arena import Arena, kv_page_bytes
from adex_worker.adapters.core.bundle_header import fingerprint_of
from adex_worker.adapters.disk_tier import DiskTier
from adex_worker.adapters.format import Limits
from adex_worker.adapters.intake_process import IntakeProcess
from adex_worker.adapters.intake_wire import IntakeOptions
from adex_worker.adapters.store import AdapterStore
from adex_worker.budget import Budget, Machine, Wishes, as_size, budget_of, cpu_dtype, threads_of
from adex_worker.config import SLOTS_MAX, WorkerOptions, default_cache_dir
from adex_worker.grammar.compiler import GrammarCompiler
from adex_worker.metrics import Sources
from adex_worker.model.decoder import Decoder, ModelWeights
from adex_worker.model.source import ModelSource
from adex_worker.model.weights import load_model
from adex_worker.progress import progress_bar, progress_lines
from adex_worker.run.constraints import ConstraintTable
from adex_worker.run.lane import AtOnce, Beside
from adex_worker.run.last_tokens import last_tokens
from adex_worker.run.runner import Runner
from adex_worker.run.steps import StepThread
from adex_worker.service.commands import CommandPools
from adex_worker.service.server import WorkerParts

_LOG = logging.getLogger(__name__)

BLOCK_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker that can serve, what its metrics read, and what to tell the operator of it."""

    parts: WorkerParts
    store: AdapterStore
    sources: Sources
    description: str


def assemble(options: WorkerOptions) -> Worker:
    """Load the model and set up all that serves it. The step thread is started.

    Raises AdexError, in words for the operator, for a model, device or size that cannot be had.
    """
    threads = _set_threads(options.threads)
    device = _device(options.device)
    _stay_at(device)
    started_s = time.monotonic()
    kernels_path = _native(options, device)
    decoder = _load(options, device)
    kernels_path = kernels_path or _triton(decoder)
    page_bytes = _page_bytes(decoder)
    records = options.cuda_graphs and device.type == "cuda" and kernels_path == "triton"
    row_bytes = recording.row_bytes(decoder, options.rank_max) if records else 0
    machine = _machine(options.cache_dir, device)
    budget = budget_of(_wishes(options), machine, page_bytes, row_bytes)
    arena = _arena(budget, decoder)
    try:
        store = _store(options, decoder, budget, arena)
    except OSError as error:
        raise ValidationError(
            f"--cache-dir {options.cache_dir} cannot be used: {error}",
            field="cache_dir",
            remedy="Name a folder this process may write",
        ) from error
    info = _info(options, decoder, budget)
    kv = _kv(arena, decoder)
    if (cores := _own_cores(threads)) is not None:
        decoder.stay_on(cores)
    grammars = _grammars(options, info)
    constraints = None if grammars is None else ConstraintTable(grammars)
    last, graphs = last_tokens(info, device), None
    if records:
        graphs, told = recording.recorded(decoder, kv, store.slots, last, info)
        kernels_path += f"; CUDA graphs: {told}"
    lane = Beside() if device.type == "cpu" else AtOnce()
    runner = Runner(decoder, kv, arena, store.slots, info, constraints, graphs, last, lane)
    steps = StepThread(runner, partial(_stay_at, device))
    steps.start()
    # The model is here to stay: collecting garbage need not look at it again.
    gc.collect()
    gc.freeze()
    pools = CommandPools(store)
    return Worker(
        parts=WorkerParts(info, steps, pools, grammars),
        store=store,
        sources=Sources(info, runner.statistics, lambda: arena.adapter_pages, pools.statistics),
        description=(
            f"{_model(info, decoder)} with {threads} thread{'s' * (threads != 1)}; {_pool(budget)};"
            f" kernels: {kernels_path}; loaded in {time.monotonic() - started_s:.1f} s"
        ),
    )


def _model(info: WorkerInfo, decoder: Decoder) -> str:
    return (
        f"{info.model_id} ({info.architecture}, {_parameters(decoder.weights) / 1e6:,.1f} M"
        f" parameters, {info.dtype}) on {info.device}"
    )


def _pool(budget: Budget) -> str:
    size, page = as_size(budget.pool_bytes), as_size(budget.page_bytes)
    return f"pool {size} in {budget.pages} pages of {page}"


def _triton(decoder: Decoder) -> str:
    """Have Triton's kernels serve the decoder's device where they can; what serves it, in words."""
    if importlib.util.find_spec("triton") is None:
        return "torch (no Triton)"
    # Imported here and only now: Triton is not made for every platform.
    check = importlib.import_module("adex_kernels.gpu.check")
    spec, device = decoder.spec, decoder.device
    sizes = spec.heads, spec.kv_heads, spec.head_dim, spec.vocabulary
    path: str = check.serve(device, decoder.dtype, *sizes)
    return path


def _grammars(options: WorkerOptions, info: WorkerInfo) -> GrammarCompiler | None:
    """What compiles grammars for this model, where it has a tokenizer to compile them for."""
    try:
        path = ModelSource(options.model_id, options.revision).file("tokenizer.json")
    except AdexError as error:
        _LOG.warning("texts cannot be constrained: %s", error)
        return None
    return None if path is None else GrammarCompiler(path, info.vocabulary, info.eos_token_ids)


def _store(options: WorkerOptions, decoder: Decoder, budget: Budget, arena: Arena) -> AdapterStore:
    """The tiers of adapters, and the process that brings them. Raises OSError."""
    options.cache_dir.mkdir(parents=True, exist_ok=True)
    shape, dtype = decoder.spec.shape, decoder.dtype
    dtype_name = str(dtype).removeprefix("torch.")
    bundle_bytes_max = min(budget.host_bytes, budget.disk_bytes, budget.pool_bytes)
    disk = DiskTier(options.cache_dir, fingerprint_of(shape, dtype_name))
    kernels = library.registered()
    bringing = IntakeOptions(
        cache_dir=options.cache_dir,
        local_roots=options.local_adapter_roots,
        s3_roots=options.s3_adapter_roots,
        use_server_hf_token=options.use_server_hf_token,
        limits=Limits(shape, dtype.itemsize, options.rank_max, bundle_bytes_max),
        dtype=dtype_name,
        kernels=kernels.path if kernels else None,
        log_level=options.log_level,
        log_format=options.log_format,
    )
    return AdapterStore(
        bringer=IntakeProcess(bringing, disk),
        disk=disk,
        shape=shape,
        dtype=dtype,
        arena=arena,
        host_bytes=budget.host_bytes,
        slots_max=SLOTS_MAX,
    )


def _native(options: WorkerOptions, device: torch.device) -> str:
    """The compiled kernels, kept in this cache and in the user's own; "" beside a GPU."""
    if device.type != "cpu":
        return ""
    return native.load(options.cache_dir, default_cache_dir(os.environ))


def _load(options: WorkerOptions, device: torch.device) -> Decoder:
    source = ModelSource(options.model_id, options.revision)
    spec = source.spec()
    dtype = options.dtype or spec.dtype or "float32"
    if options.dtype is None and device.type == "cpu":
        dtype = cpu_dtype(dtype, has_bfloat16_units=_has_bfloat16_units())
    if spec.unread_keys:
        _LOG.info("keys of config.json that change nothing here: %s", ", ".join(spec.unread_keys))
    _LOG.info("loading %s in %s on %s", options.model_id, dtype, device)
    try:
        return load_model(
            options.model_id,
            device=device,
            dtype=dtype,
            revision=options.revision,
            int8=options.int8,
            progress=(progress_bar if sys.stderr.isatty() else progress_lines)("loading weights"),
        )
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ValidationError(
            f"the model's weights do not fit {device}",
            field="device",
            remedy="Serve a smaller model, another dtype, or on a larger device",
        ) from error


def _set_threads(wanted: int | None) -> int:
    """Returns: how many threads a step uses. OMP_NUM_THREADS stands where nothing is asked for."""
    if wanted is not None:
        torch.set_num_threads(wanted)
    elif "OMP_NUM_THREADS" not in os.environ and hasattr(os, "sched_getaffinity"):
        # torch counts the machine's cores; a container may be allowed fewer.
        cores = min(torch.get_num_threads(), len(os.sched_getaffinity(0)))
        torch.set_num_threads(threads_of(cores, _processor_share()))
    return torch.get_num_threads()


def _processor_share() -> str:
    """What this process's control group says of it; "" where there is none."""
    try:
        return Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii")
    except OSError:
        return ""


def _own_cores(threads: int) -> list[int] | None:
    """A core for each thread of a step, where the steps have all that this process may use.

    With cores to spare, the threads are better off where Linux sends them.
    """
    if not hasattr(os, "sched_getaffinity"):
        return None
    cores = sorted(os.sched_getaffinity(0))
    return cores if 1 < threads == len(cores) else None


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
        usable = device.type in ("cpu", "cuda")
    except RuntimeError:
        usable, device = False, torch.device("cpu")
    if not usable:
        raise ValidationError(
            f"--device {name!r} is none that is served",
            field="device",
            remedy="Give auto, cpu, cuda or cuda:N",
        )
    if device.type == "cpu":
        return torch.device("cpu")
    index = device.index or 0
    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        raise ValidationError(
            f"--device {name}: there are {torch.cuda.device_count()} usable CUDA devices here",
            field="device",
            remedy="Give --device cpu, or install a torch built for this machine's driver",
        )
    return torch.device("cuda", index)


def _stay_at(device: torch.device) -> None:
    """Have this thread launch on `device`: Triton asks the thread for it, not the tensors."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def _machine(cache_dir: Path, device: torch.device) -> Machine:
    existing = cache_dir
    # A folder that may not be looked into has no existing child either.
    while not os.path.exists(existing):
        existing = existing.parent
    return Machine(
        host_free=_host_free(),
        disk_free=shutil.disk_usage(existing).free,
        device_free=torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None,
    )


def _host_free() -> int:
    """Bytes this process may still take: the machine's, or its control group's if that is less."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable:"))
        free = int(available.split()[1]) * 1024
    except (OSError, StopIteration):
        _LOG.debug("no /proc/meminfo to read; taking what is entirely unused")
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        used = int((group / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return free
    return free if limit == "max" else max(0, min(free, int(limit) - used))


def _has_bfloat16_units() -> bool:
    """Whether this processor multiplies bfloat16 itself."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("bf16"))


def _arena(budget: Budget, decoder: Decoder) -> Arena:
    try:
        return Arena(
            pages=budget.pages,
            page_bytes=budget.page_bytes,
            dtype=decoder.dtype,
            device=decoder.device,
        )
    except (MemoryError, OSError, RuntimeError) as error:
        raise ValidationError(
            f"a device pool of {as_size(budget.pool_bytes)} cannot be allocated",
            field="device_memory",
            remedy="Ask for less with --device-memory",
        ) from error


def _kv(arena: Arena, decoder: Decoder) -> torch.Tensor:
    spec = decoder.spec
    return arena.kv(
        layers=spec.layers,
        block_tokens=BLOCK_TOKENS,
        kv_heads=spec.kv_heads,
        head_dim=spec.head_dim,
    )


def _page_bytes(decoder: Decoder) -> int:
    spec = decoder.spec
    return kv_page_bytes(BLOCK_TOKENS, spec.layers, spec.kv_heads, spec.head_dim, decoder.dtype)


def _wishes(options: WorkerOptions) -> Wishes:
    return Wishes(
        device_bytes=options.device_bytes,
        host_bytes=options.host_bytes,
        disk_bytes=options.disk_bytes,
        step_tokens_max=options.step_tokens_max,
        step_sequences_max=options.step_sequences_max,
    )


def _info(options: WorkerOptions, decoder: Decoder, budget: Budget) -> WorkerInfo:
    spec = decoder.spec
    return WorkerInfo(
        model_id=options.model_id,
        architecture=spec.architecture,
        dtype=str(decoder.dtype).removeprefix("torch."),
        device=str(decoder.device),
        layers=spec.layers,
        vocabulary=spec.vocabulary,
        positions_max=spec.positions_max,
        block_tokens=BLOCK_TOKENS,
        page_bytes=budget.page_bytes,
        pages=budget.pages,
        slots_max=SLOTS_MAX,
        host_bytes=budget.host_bytes,
        disk_bytes=budget.disk_bytes,
        rank_max=options.rank_max,
        step_tokens_max=budget.step_tokens_max,
        step_sequences_max=budget.step_sequences_max,
        eos_token_ids=spec.eos_token_ids,
    )


def _parameters(weights: ModelWeights) -> int:
    """Numbers in the model; a head that is the embedding counts once."""
    tensors: list[Weight | None] = [weights.embedding, weights.norm, weights.head]
    for layer in weights.layers:
        tensors += [getattr(layer, field.name) for field in fields(layer)]
    # Optional weights come as None.
    distinct = {id(each): each for each in tensors if each is not None}
    return sum(each.numel() for each in distinct.values())
