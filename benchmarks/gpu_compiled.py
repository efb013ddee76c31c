"""What the kernels become on each kind of GPU: compiled for one, with none at hand.

The functions that launch the kernels are called with tensors that have shapes and no memory, and
each launch is compiled for what it would have been given, by the compiler that Triton brings.
Prints a line for each: registers, bytes spilled, shared memory, and the widest and narrowest loads
of adapters, keys and values.

    python benchmarks/gpu_compiled.py --models 8b --dtypes bfloat16 --capabilities 90
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

# Triton decides this when it is first imported.
os.environ["TRITON_INTERPRET"] = "0"

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver

from adex_kernels.adapter_table import AdapterTable
from adex_kernels.batch import AttentionBatch
from adex_kernels.draw import DrawnRows
from adex_kernels.gpu import attention, draw, fused, lora
from adex_kernels.layout import GROUP_MODULES, Group, LinearShape, ModelShape

_TOKENS, _PAGES, _SLOTS, _RANKS_MAX = 16, 1 << 18, 512, 192
_PROCESSORS = 128
_NVIDIA_BIN = Path(triton.__file__).parent / "backends/nvidia/bin"


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of a base model that kernels are compiled for."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    window: int | None = None
    softcap: float | None = None
    activation: str = "silu"
    vocabulary: int = 128_256

    @property
    def shape(self) -> ModelShape:
        """Its seven linears; few layers serve as well as many."""
        wide, narrow = self.heads * self.head_dim, self.kv_heads * self.head_dim
        outs = [(self.hidden, wide), (self.hidden, narrow), (self.hidden, narrow)]
        outs += [(wide, self.hidden), *[(self.hidden, self.intermediate)] * 2]
        outs += [(self.intermediate, self.hidden)]
        return ModelShape(4, tuple(LinearShape(*each) for each in outs))


MODELS = {
    "8b": Sizes(4096, 32, 8, 128, 14336),
    "1b": Sizes(2048, 32, 8, 64, 8192),
    "gemma-2-2b": Sizes(2304, 8, 4, 256, 9216, 4096, 50.0, "gelu_tanh", 256_000),
    "qwen2.5-0.5b": Sizes(896, 14, 2, 64, 4864, vocabulary=151_936),
}


@dataclass(frozen=True, slots=True)
class Compiled:
    """One kernel for one device: what its launch takes there.

    `load_bytes` counts the loads from global memory by their width, where several elements of a
    row are asked for at once; loads of single words of lists and tables are its narrowest.
    """

    model: str
    dtype: str
    capability: int
    kernel: str
    registers: int
    spilled: int
    shared: int
    load_bytes: dict[int, int]


class _Device:
    """As much of a driver as compiling asks for."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return self._target.arch

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def compiling(capability: int) -> Iterator[list[Any]]:
    """Launches compile and do not run; yields what they compiled to, each kernel once."""
    found: dict[str, Any] = {}
    run: Callable[..., Any] = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        found[kernel.hash] = kernel
        return kernel

    kernels: list[Any] = []
    driver.set_active(_Device(capability))
    with (
        mock.patch.object(JITFunction, "run", compile_only),
        mock.patch.object(lora, "processors", return_value=_PROCESSORS),
    ):
        yield kernels
    kernels += found.values()


def launch_all(sizes: Sizes, dtype: torch.dtype) -> None:
    """Every launch of a step: decodes of one and of many rows, chunks, in the first two layers, and
    lists of odd and even lengths, which end where memory is aligned and where it is not."""
    for layer in (0, 1):
        for rows in (1, 128):
            _launch_lora(sizes, dtype, rows, layer)
        _launch_attention(sizes, dtype, layer, [512, 5000 - 4300 * layer, 300])
    _launch_between(sizes, dtype)
    _launch_draw(sizes)


def _launch_lora(sizes: Sizes, dtype: torch.dtype, rows: int, layer: int) -> None:
    shape = sizes.shape
    table = AdapterTable(shape, _SLOTS, torch.empty(1 << 40, dtype=dtype, device="meta"))
    entries = torch.empty((rows, 3), dtype=torch.int32, device="meta")
    work = lora.LoraWork.static(entries, _RANKS_MAX, table)
    for group in Group:
        linears = [shape.linear(module) for module in GROUP_MODULES[group]]
        x = torch.empty((rows, linears[0].in_features), dtype=dtype, device="meta")
        out_features = sum(linear.out_features for linear in linears)
        y = torch.empty((rows, out_features), dtype=dtype, device="meta")
        lora.lora_add_(y, x, work, layer, group)


def _launch_attention(sizes: Sizes, dtype: torch.dtype, layer: int, lens: list[int]) -> None:
    starts = [0, 1, 2, 302]
    tables = [[0] * (-(-length // _TOKENS)) for length in lens]
    batch = AttentionBatch.build(starts, lens, tables, _TOKENS)
    work = attention.AttentionWork.of(batch, sizes.heads // sizes.kv_heads)
    heads = (sizes.heads, sizes.head_dim)
    q = torch.empty((starts[-1], *heads), dtype=dtype, device="meta")
    size = (_PAGES, 4, 2, _TOKENS, sizes.kv_heads, sizes.head_dim)
    kv = torch.empty(size, dtype=dtype, device="meta")
    scale = sizes.head_dim**-0.5
    cap = sizes.softcap
    attention.attention(q, kv, layer, work, scale=scale, window=sizes.window, softcap=cap)


def _launch_between(sizes: Sizes, dtype: torch.dtype) -> None:
    def empty(*size: int, of: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(size, dtype=of, device="meta")

    hidden, weight = empty(8, sizes.hidden), empty(sizes.hidden)
    fused.add_norm_(hidden, hidden, weight, 1e-5)
    fused.gate(empty(8, 2 * sizes.intermediate), sizes.activation)
    turned = empty(8, 1, sizes.head_dim)
    cells = empty(8, of=torch.int64)
    kv = empty(_PAGES, 4, 2, _TOKENS, sizes.kv_heads, sizes.head_dim)
    heads = empty(8, sizes.heads + 2 * sizes.kv_heads, sizes.head_dim)
    for layer in (0, 1):
        fused.rotate_write_(heads, turned, turned, kv, layer, cells, cells, sizes.heads)


def _launch_draw(sizes: Sizes) -> None:
    for count in (1, 3, 16):
        logits = torch.empty((16, sizes.vocabulary), device="meta")
        finite = torch.empty(16, dtype=torch.bool, device="meta")
        reals = np.ones(count, np.float32)
        rows, keys = np.arange(count), np.zeros(count, np.int32)
        drawn = DrawnRows(rows, keys, reals, rows, reals, reals, reals)
        draw.draw_(torch.empty(16, dtype=torch.int64, device="meta"), logits, finite, drawn)


def described(model: str, dtype: str, capability: int, kernel: Any) -> Compiled:
    """What `cuobjdump` and the assembly say of a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [str(_NVIDIA_BIN / "cuobjdump"), "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    resources = dict(re.findall(r"(REG|LOCAL|STACK):(\d+)", usage))
    return Compiled(
        model=model,
        dtype=dtype,
        capability=capability,
        kernel=kernel.metadata.name,
        registers=int(resources["REG"]),
        spilled=int(resources["LOCAL"]) + int(resources["STACK"]),
        shared=kernel.metadata.shared,
        load_bytes=_load_bytes(kernel.asm["ptx"]),
    )


def _load_bytes(ptx: str) -> dict[int, int]:
    """Loads from global memory by bytes that a thread asks for at once."""
    counts = Counter[int]()
    for vector, bits in re.findall(
        r"ld\.global(?:\.[a-zA-Z_:0-9]+?)*?(?:\.v(\d))?\.[bsuf](\d+)", ptx
    ):
        counts[int(vector or 1) * int(bits) // 8] += 1
    for size in re.findall(
        r"cp\.async\.c[ag]\.shared\.global(?:\.\S+)? \[[^]]*\], \[[^]]*\], 0x(\w+)", ptx
    ):
        counts[int(size, 16)] += 1
    return dict(sorted(counts.items()))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16"])
    parser.add_argument("--capabilities", nargs="+", type=int, default=[80, 90, 100])
    parser.add_argument("--json", action="store_true", help="one object a line")
    args = parser.parse_args()
    if not (_NVIDIA_BIN / "ptxas").exists():
        print("this Triton brings no compiler for NVIDIA's GPUs", file=sys.stderr)
        return 2
    for capability in args.capabilities:
        for model in args.models:
            for dtype in args.dtypes:
                with compiling(capability) as kernels:
                    launch_all(MODELS[model], getattr(torch, dtype))
                for kernel in kernels:
                    line = described(model, dtype, capability, kernel)
                    print(json.dumps(asdict(line)) if args.json else line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
