"""The client of Adex: one base model, thousands of LoRA adapters, one call.

from adex import Client

with Client("http://127.0.0.1:8080") as client:
    print(client.generate("Hello", adapter_id="tone").generated_text)
"""

from adex.aio import AsyncClient
from adex.errors import AdexError
from adex.sync import Client
from adex.types import (
    AdapterCard,
    AdapterProgress,
    AdapterSource,
    AdapterState,
    AlternativeToken,
    BestOfSequence,
    ChatChoice,
    ChatChoiceDelta,
    ChatCompletion,
    ChatCompletionChunk,
    ChatMessage,
    ChatSampling,
    Details,
    Message,
    ModelInfo,
    PromptToken,
    Response,
    Sampling,
    StreamResponse,
    Token,
    ToolCall,
    ToolCallDelta,
    Usage,
)

__all__ = [
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
