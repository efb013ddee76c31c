"""Compiles the kernels' C source for this very processor, once, and loads it.

What is missing or fails costs speed, never service: the reason is logged, and torch computes.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import resources
from pathlib import Path

from adex_kernels.native import library

_LOG = logging.getLogger(__name__)

COMPILERS = ("cc", "gcc", "clang")
# None of these may let the compiler reorder sums: a row's bits must not depend on its batch.
FLAGS = ("-O3", "-march=native", "-std=gnu11", "-fPIC", "-fno-math-errno", "-fopenmp")
_COMPILE_S_MAX = 300.0
_UNITS = ("lora.c", "step.c")
# Of /proc/cpuinfo, on x86 and on ARM.
_PROCESSOR_KEYS = (
    "vendor_id",
    "cpu family",
    "model\t",
    "flags",
    "Features",
    "CPU impl",
    "CPU part",
)


def load(cache_dir: Path) -> str:
    """Register the compiled kernels, compiling them where `cache_dir` has none yet.

    Returns: what computes them from now on, for the operator. ADEX_NATIVE=0 leaves them to torch.
    """
    library.register(None)
    if os.environ.get("ADEX_NATIVE", "1") == "0":
        return "torch"
    try:
        found = library.Library(ctypes.CDLL(str(_compiled(cache_dir / "native"))))
    except (OSError, AttributeError, subprocess.SubprocessError) as error:
        _LOG.info("steps stay with torch, which is slower: %s", _reason(error))
        return "torch"
    library.register(found)
    return f"native {found.target}"


def _compiled(folder: Path) -> Path:
    """The shared library in `folder`, which may have to be compiled first."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise FileNotFoundError(f"there is no C compiler here ({', '.join(COMPILERS)})")
    openmp = _openmp()
    sources = _sources()
    version = _run(compiler, "--version")
    identity = "\0".join((compiler, version, *FLAGS, str(openmp), _processor()))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    owner = folder.stat()
    if owner.st_uid != os.getuid() or owner.st_mode & 0o022:
        raise PermissionError(f"others may write {folder}, so nothing in it is run")
    content = b"\0".join((identity.encode(), *sources.values()))
    path = folder / f"{hashlib.sha256(content).hexdigest()[:32]}.so"
    if path.exists():
        return path
    with tempfile.TemporaryDirectory(dir=folder) as work:
        for name, source in sources.items():
            Path(work, name).write_bytes(source)
        units = [Path(work, name) for name in _UNITS for _ in library.TYPES]
        kinds = [*range(len(library.TYPES))] * len(_UNITS)
        with ThreadPoolExecutor() as compilers:
            objects = list(compilers.map(partial(_object, compiler), units, kinds))
        linked = Path(work, "adex.so")
        # Linked to the very OpenMP that torch has loaded: two would have two pools of threads.
        _run(compiler, "-shared", *objects, str(openmp), "-lm", "-o", str(linked))
        # Another worker that compiles the same puts the same there.
        os.replace(linked, path)
    return path


def _sources() -> dict[str, bytes]:
    """The C files by name."""
    folder = resources.files("adex_kernels").joinpath("native")
    files = [each for each in folder.iterdir() if each.name.endswith((".c", ".h"))]
    return {each.name: each.read_bytes() for each in sorted(files, key=lambda each: each.name)}


def _object(compiler: str, unit: Path, kind: int) -> str:
    """`unit` compiled for one type of element."""
    result = unit.with_suffix(f".{kind}.o")
    _run(compiler, *FLAGS, f"-DTYPE={kind}", "-c", str(unit), "-o", str(result))
    return str(result)


def _openmp() -> Path:
    """The GNU OpenMP library that torch brought into this process."""
    with open("/proc/self/maps", encoding="utf-8") as maps:
        for line in maps:
            path = Path(line.rstrip("\n").partition("/")[2])
            if path.name.startswith("libgomp"):
                return Path("/", path)
    raise FileNotFoundError("torch runs here without GNU OpenMP")


def _processor() -> str:
    """What -march=native looks at: a cache may be shared by machines that differ."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    told = {line for line in lines if line.startswith(_PROCESSOR_KEYS)}
    return "\n".join((platform.machine(), *sorted(told)))


def _run(*command: str) -> str:
    # No shell, and the compiler is the operator's own.
    done = subprocess.run(  # noqa: S603
        command, capture_output=True, text=True, timeout=_COMPILE_S_MAX, check=True
    )
    return done.stdout


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        return f"{error.cmd[0]} failed: {error.stderr.strip()[-400:]}"
    return str(error)
