"""The compiled C of this folder, once a process has loaded it: one set of functions per type.

Until a library is registered torch answers. Nothing in here compiles, or looks for files.
"""

import ctypes
from pathlib import Path

import torch

TYPES = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "float32"}


class Functions:
    """What the C files export for one element type; arguments are structs by address."""

    __slots__ = ("greedy", "linear", "log_totals", "lora_add", "pack", "step")

    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        """Raises AttributeError when the library is not ours."""
        self.lora_add = library[f"adex_lora_add_{name}"]
        self.lora_add.argtypes, self.lora_add.restype = (ctypes.c_void_p,), ctypes.c_int
        self.step = library[f"adex_step_{name}"]
        self.step.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
        self.step.restype = ctypes.c_int
        self.linear = library[f"adex_linear_{name}"]
        self.linear.argtypes = (
            *(ctypes.c_void_p,) * 3,
            ctypes.c_int64,
            ctypes.c_void_p,
            ctypes.c_int64,
        )
        self.linear.restype = None
        self.greedy = library[f"adex_greedy_{name}"]
        self.greedy.argtypes = (
            ctypes.c_void_p,
            *(ctypes.c_int64,) * 2,
            *(ctypes.c_void_p,) * 2,
            ctypes.c_int64,
        )
        self.greedy.restype = None
        self.log_totals = library[f"adex_log_totals_{name}"]
        self.log_totals.argtypes = (
            ctypes.c_void_p,
            *(ctypes.c_int64,) * 2,
            ctypes.c_void_p,
            ctypes.c_int64,
        )
        self.log_totals.restype = None
        self.pack = library[f"adex_pack_{name}"]
        self.pack.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p)
        self.pack.restype = ctypes.c_int


class Library:
    """The functions by type in the file at `path`, and the vector instructions they were compiled
    for."""

    def __init__(self, path: Path) -> None:
        """Raises OSError when it cannot be loaded, AttributeError when the library is not ours."""
        library = ctypes.CDLL(str(path))
        self.path = path
        self._functions = {dtype: Functions(library, name) for dtype, name in TYPES.items()}
        target = library.adex_target_float32
        target.argtypes, target.restype = (), ctypes.c_char_p
        self.target = str(target(), "ascii")

    def functions(self, dtype: torch.dtype) -> Functions | None:
        return self._functions.get(dtype)


_registered: Library | None = None


def register(library: Library | None) -> None:
    """From now on the kernels go through `library`; None is torch again."""
    global _registered
    _registered = library


def registered() -> Library | None:
    return _registered


def functions(dtype: torch.dtype, device: torch.device) -> Functions | None:
    """The compiled functions for tensors of that kind, or None where torch computes."""
    if _registered is None or device.type != "cpu":
        return None
    return _registered.functions(dtype)
