"""The sequences that gain a token in every step: one count of steps tells where each of them is.

What happens to one of them alone happens when its block is full, every so many steps, or when all
its tokens are planned. Both are known when it joins, so a step looks at those it concerns and at
nobody else.
"""

from adex_scheduler.core.sequence import Sequence, Tenant


class Decoding:
    """Members compute one position each in every step. A member's own `planned` stands still.

    Its next position is its `lead` beyond the count of steps.
    """

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._steps = 0
        self._members: dict[int, Sequence] = {}
        # Their known tokens, in the same order.
        self._tokens: dict[int, list[int]] = {}
        # Those whose blocks are full before a step, by its count modulo the tokens of a block.
        self._full: list[dict[int, Sequence]] = [{} for _ in range(block_tokens)]
        # Those of whom nothing is left to plan, by the count of steps then.
        self._over: dict[int, dict[int, Sequence]] = {}
        # What a step costs each payer, and for how many members.
        self._charges: dict[Tenant, tuple[float, int]] = {}

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence.number in self._members

    @property
    def numbers(self) -> tuple[int, ...]:
        """The members."""
        return tuple(self._members)

    @property
    def tokens(self) -> list[list[int]]:
        """The members' known tokens, in the order of their numbers."""
        return list(self._tokens.values())

    @property
    def full(self) -> list[Sequence]:
        """Members who need another block before the next step."""
        return list(self._full[self._steps % self._block_tokens].values())

    def planned(self, sequence: Sequence) -> int:
        """Positions planned of any sequence, a member or not."""
        return self._steps + sequence.lead if sequence in self else sequence.planned

    def join(self, sequence: Sequence) -> None:
        """From the next step on it computes a position in each, the first being `planned`."""
        assert sequence.planned < sequence.positions_max, f"{sequence.number} has no positions left"
        number = sequence.number
        sequence.lead = lead = sequence.planned - self._steps
        self._members[number] = sequence
        self._tokens[number] = sequence.tokens
        self._full[-lead % self._block_tokens][number] = sequence
        self._over.setdefault(sequence.positions_max - lead, {})[number] = sequence
        charge, members = self._charges.get(sequence.payer, (0.0, 0))
        self._charges[sequence.payer] = charge + sequence.output_charge, members + 1

    def leave(self, sequence: Sequence) -> None:
        """It has no part in further steps. Nothing happens where it had none."""
        if self._members.pop(sequence.number, None) is None:
            return
        lead, number = sequence.lead, sequence.number
        del self._tokens[number]
        sequence.planned = self._steps + lead
        del self._full[-lead % self._block_tokens][number]
        over = self._over[sequence.positions_max - lead]
        del over[number]
        if not over:
            del self._over[sequence.positions_max - lead]
        charge, members = self._charges.pop(sequence.payer)
        if members > 1:
            self._charges[sequence.payer] = charge - sequence.output_charge, members - 1

    def advance(self) -> list[Sequence]:
        """Each has its part in a step, and is charged for it.

        Returns: those of whom nothing is left to plan, who leave.
        """
        self._steps += 1
        for payer, (charge, _) in self._charges.items():
            payer.served += charge
        over = list(self._over.get(self._steps, {}).values())
        for sequence in over:
            self.leave(sequence)
        return over
