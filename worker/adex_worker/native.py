"""Compiles the kernels' C source for this very processor, once, and loads it.

What is missing or fails costs speed, never service: the reason is logged, and torch computes.
"""

import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from importlib import resources
from pathlib import Path

from adex_kernels.native import library

_LOG = logging.getLogger(__name__)

COMPILERS = ("cc", "gcc", "clang")
# None of these may let the compiler reorder sums: a row's bits must not depend on its batch.
FLAGS = (
    "-O3",
    "-march=native",
    "-std=gnu11",
    "-fPIC",
    "-fno-math-errno",
    "-fopenmp",
    "-D_GNU_SOURCE",
)
_COMPILE_S_MAX = 300.0
# Libraries in one folder; another comes with each change of compiler, processor or source.
_KEPT_MAX = 16
_UNITS = ("choice.c", "lora.c", "pack.c", "step.c")
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


def load(*cache_dirs: Path) -> str:
    """Register the compiled kernels, compiling them where none of `cache_dirs` has them yet.

    Each of those is given what another had: one may outlive the machine, another the next start's
    options. Returns: what computes from now on, for the operator. ADEX_NATIVE=0 leaves it to torch.
    """
    library.register(None)
    if os.environ.get("ADEX_NATIVE", "1") == "0":
        return "torch"
    try:
        folders = dict.fromkeys(each / "native" for each in cache_dirs)
        found = library.Library(_compiled(tuple(folders)))
    except (OSError, AttributeError, subprocess.SubprocessError) as error:
        _LOG.info("steps stay with torch, which is slower: %s", _reason(error))
        return "torch"
    library.register(found)
    return f"native {found.target}"


def _compiled(folders: Sequence[Path]) -> Path:
    """The shared library in one of `folders`, which may have to be compiled first."""
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise FileNotFoundError(f"there is no C compiler here ({', '.join(COMPILERS)})")
    openmp, sources = _openmp(), _sources()
    version = _run(compiler, "--version")
    identity = "\0".join((compiler, version, *FLAGS, str(openmp), _processor()))
    content = b"\0".join((identity.encode(), *sources.values()))
    name = f"{hashlib.sha256(content).hexdigest()[:32]}.so"
    paths = [folder / name for folder in _own(folders)]
    found = next((path for path in paths if path.exists()), None)
    if found is not None:
        # The least recently used of a folder is the first to be forgotten there.
        with suppress(OSError):
            os.utime(found)
        return _kept(found, paths)
    with tempfile.TemporaryDirectory() as work:
        for file, source in sources.items():
            Path(work, file).write_bytes(source)
        return _kept(_linked(compiler, Path(work), openmp), paths)


def _own(folders: Sequence[Path]) -> list[Path]:
    """Those of `folders` that nobody else may write: what is found there is run.

    Raises OSError where there is none.
    """
    own, refusal = list[Path](), OSError("there is no folder to keep a library in")
    for folder in folders:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            owner = folder.stat()
            if owner.st_uid != os.getuid() or owner.st_mode & 0o022:
                raise PermissionError(f"others may write {folder}, so nothing in it is run")
        except OSError as error:
            refusal = error
        else:
            own.append(folder)
    if not own:
        raise refusal
    return own


def _kept(library_file: Path, paths: Sequence[Path]) -> Path:
    """Put the library at each of `paths` that has none; the first that has it then.

    Raises OSError where none has.
    """
    refusal: OSError | None = None
    for path in paths:
        if path.exists():
            continue
        try:
            _put(library_file, path)
        except OSError as error:
            refusal = error
    found = next((path for path in paths if path.exists()), None)
    if found is None:
        assert refusal is not None
        raise refusal
    return found


def _put(library_file: Path, path: Path) -> None:
    """Copy it there whole or not at all. Another worker that has the same puts the same there."""
    handle, copy = tempfile.mkstemp(dir=path.parent, prefix=".")
    try:
        with open(handle, "wb") as to:
            to.write(library_file.read_bytes())
        os.replace(copy, path)
    except OSError:
        os.unlink(copy)
        raise
    # Whoever has loaded one keeps it, though its name goes.
    used = sorted(path.parent.glob("*.so"), key=lambda each: each.stat().st_mtime)
    for old in used[:-_KEPT_MAX]:
        old.unlink(missing_ok=True)


def _linked(compiler: str, work: Path, openmp: Path) -> Path:
    """The library compiled from the sources in `work`."""
    units = [work / name for name in _UNITS for _ in library.TYPES]
    kinds = [*range(len(library.TYPES))] * len(_UNITS)
    with ThreadPoolExecutor() as compilers:
        objects = list(compilers.map(partial(_object, compiler), units, kinds))
    linked = work / "adex.so"
    # Linked to the very OpenMP that torch has loaded: two would have two pools of threads.
    _run(compiler, "-shared", *objects, str(openmp), "-lm", "-o", str(linked))
    return linked


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
