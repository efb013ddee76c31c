"""What `import adex` gives, and how little it takes."""

import inspect
import subprocess
import sys

import pytest

import adex

FOREIGN = (
    "adex_kernels",
    "adex_proto",
    "adex_scheduler",
    "adex_worker",
    "aiohttp",
    "google.protobuf",
    "grpc",
    "numpy",
    "tokenizers",
    "torch",
    "transformers",
)


def test_the_exported_names_are_exactly_these() -> None:
    assert sorted(adex.__all__) == [
        "AdapterCard",
        "AdapterProgress",
        "AdapterSource",
        "AdapterState",
        "AdexError",
        "AlternativeToken",
        "AsyncClient",
        "BestOfSequence",
        "ChatChoice",
        "ChatChoiceDelta",
        "ChatCompletion",
        "ChatCompletionChunk",
        "ChatMessage",
        "ChatSampling",
        "Client",
        "Details",
        "Message",
        "ModelInfo",
        "PromptToken",
        "Response",
        "Sampling",
        "StreamResponse",
        "Token",
        "ToolCall",
        "ToolCallDelta",
        "Usage",
    ]
    assert all(hasattr(adex, name) for name in adex.__all__)


@pytest.mark.parametrize("module", ["adex", "adex.cli"])
def test_importing_it_brings_neither_our_other_packages_nor_a_heavy_one(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {FOREIGN!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_both_clients_have_the_same_methods_and_parameters() -> None:
    def surface(kind: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(method).parameters)
            for name, method in vars(kind).items()
            if not name.startswith("_") and name not in ("close", "aclose")
        }

    assert surface(adex.Client) == surface(adex.AsyncClient)
