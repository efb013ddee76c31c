"""What decode steps, low-rank terms and page-ins take on this machine's GPU, beside their floors.

    make bench-gpu [ARGS="--models 8b --parts decode kernels"]

Models of random weights in Llama 3.1's shapes, bfloat16, 512 tokens of context, adapters of rank 16
on all linears. Steps are timed as a worker computes them, recorded as CUDA graphs, and once with
each kernel launched by the host. Needs torch, triton, numpy and safetensors, and this source tree;
matplotlib for the plot. `--interpret-tiny` runs all of it without a GPU at toy sizes: its figures
mean nothing.
"""

import argparse
import os
import platform
import re
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

# Triton decides this when it is first imported.
os.environ["TRITON_INTERPRET"] = "1" if "--interpret-tiny" in sys.argv else "0"

import torch
import triton

from adex_kernels import dispatch
from adex_kernels.gpu import check
from adex_kernels.gpu.kernels import TritonKernels
from gpu_parts import PARTS, Report
from gpu_world import SERVED, TINY, World, fitted

_TOY = "--interpret-tiny" in sys.argv
_RESULTS = Path(__file__).parent / "results"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=["8b", "1b"], default=["8b", "1b"])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=_RESULTS)
    parser.add_argument("--interpret-tiny", action="store_true", help="without a GPU, toy sizes")
    return parser.parse_args()


def main() -> int:
    options = _options()
    if not _TOY and not torch.cuda.is_available():
        print("this measures a GPU, and torch sees none here: CUDA is needed", file=sys.stderr)
        return 2
    device = torch.device("cpu" if _TOY else "cuda")
    report = Report()
    for model in ["tiny"] if _TOY else options.models:
        served = _measure(model, options.parts, device, report)
        if not _TOY:
            torch.cuda.empty_cache()
        report.served.append(f"- {model}: kernels {served}")
    machine = _machine(device)
    text = "\n".join(_heading(machine) + report.served + [""] + report.lines + _judgement(report))
    options.out.mkdir(parents=True, exist_ok=True)
    name = f"gpu-{datetime.now(UTC):%Y-%m-%d}-{re.sub(r'[^A-Za-z0-9]+', '-', machine)}"
    plot = _plotted(report, options.out / f"{name}.png")
    (options.out / f"{name}.md").write_text(text + (f"\n![throughput]({plot})\n" if plot else ""))
    print(text)
    return 0


def _measure(model: str, parts: list[str], device: torch.device, report: Report) -> str:
    """Run the parts on one model; answers which kernels served it, as a worker's ready line."""
    started_s = time.monotonic()

    def progress(what: str, done: int, total: int) -> None:
        elapsed_s = time.monotonic() - started_s
        filled = "#" * (20 * done // max(1, total))
        print(f"\r{elapsed_s:5.0f} s {what:24} [{filled:20}]", end="", file=sys.stderr, flush=True)

    progress(f"making {model}", 0, 1)
    sizes = TINY if _TOY else fitted(model, SERVED, torch.cuda.mem_get_info(device)[0])
    world = World(model, sizes, device)
    spec = world.spec
    if _TOY:
        dispatch.serve_with(TritonKernels(), device.type)
        served = "triton, interpreted: no figure here means anything"
    else:
        dtype = world.decoder.dtype
        heads = spec.heads, spec.kv_heads, spec.head_dim
        served = check.serve(device, dtype, *heads, spec.vocabulary)
    if not served.startswith("triton"):
        raise SystemExit(f"the kernels do not serve here, {served}: nothing to measure")
    world.record(lambda done, total: progress(f"recording {model}", done, total))
    for part in parts:
        PARTS[part](world, report, progress)
    print(file=sys.stderr)
    return served


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{os.cpu_count()}-core {platform.machine()}"


def _heading(machine: str) -> list[str]:
    versions = f"torch {torch.__version__}, triton {triton.__version__}"
    return [
        "# Decode steps, low-rank terms and page-ins on a GPU",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, {machine}, {versions}: `make bench-gpu`. Medians; what"
        " misses what is wanted is bold.",
        "",
    ]


def _judgement(report: Report) -> list[str]:
    if not report.missed:
        return ["Nothing that was measured misses what is wanted."]
    return ["Missed:", "", *(f"- {miss}" for miss in report.missed)]


def _plotted(report: Report, path: Path) -> str | None:
    """The name of the plot of throughput over adapters; None without curves or matplotlib."""
    if not report.curves:
        return None
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed", file=sys.stderr)
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for name, points in sorted(report.curves.items()):
        style = "--" if name.endswith("floor") else "o-"
        axes.plot(*zip(*points, strict=True), style, label=name)
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("distinct adapters in the batch")
    axes.set_ylabel("output tokens/s")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    return path.name


if __name__ == "__main__":
    sys.exit(main())
