"""What the engine needs of the stream to a worker."""

from collections.abc import Callable
from typing import Protocol

from adex_proto.grammar import Grammar
from adex_proto.plan import AdapterCommand, StepPlan
from adex_scheduler.link.worker import LinkEvent


class Link(Protocol):
    """One stream at a time, opened again when it breaks."""

    def send(self, down: StepPlan | AdapterCommand) -> None: ...
    async def run(self, on_event: Callable[[LinkEvent], None]) -> None: ...
    async def prepare_grammar(self, grammar: Grammar) -> None: ...
