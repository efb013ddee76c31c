"""Members counted together, against each counted by itself."""

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from adex_proto.sampling import SamplingParams
from adex_scheduler.core.decoding import Decoding
from adex_scheduler.core.sequence import Sequence, Tenant

BLOCK_TOKENS = 4
PAYERS = [Tenant(name, order) for order, name in enumerate(("a", "b"))]


class DecodingAgainstCounts(RuleBasedStateMachine):
    """Sequences join, go on, leave and come back in any order."""

    outside = Bundle("outside")

    def __init__(self) -> None:
        super().__init__()
        self.decoding = Decoding(BLOCK_TOKENS)
        self.members: dict[int, Sequence] = {}
        self.planned: dict[int, int] = {}
        self.owed = {payer.name: 0.0 for payer in PAYERS}
        self.served = {payer.name: payer.served for payer in PAYERS}

    @rule(
        target=outside,
        planned=st.integers(1, 20),
        left=st.integers(1, 20),
        payer=st.sampled_from(PAYERS),
        charge=st.sampled_from([1.0, 2.0, 4.5]),
    )
    def meet(self, planned: int, left: int, payer: Tenant, charge: float) -> Sequence:
        sampling = SamplingParams(max_new_tokens=left + 1)
        prompt = (5,) * planned
        number = len(self.planned)
        sequence = Sequence.of_tokens(
            number, payer, None, prompt, sampling, eos=frozenset(), now=0.0
        )
        sequence.planned = self.planned[number] = planned
        sequence.output_charge = charge
        return sequence

    @rule(sequence=consumes(outside))
    def join(self, sequence: Sequence) -> None:
        self.members[sequence.number] = sequence
        self.decoding.join(sequence)

    @rule(target=outside, pick=st.integers(0, 50))
    def leave(self, pick: int) -> object:
        if not self.members:
            return multiple()
        number = sorted(self.members)[pick % len(self.members)]
        sequence = self.members.pop(number)
        self.decoding.leave(sequence)
        assert sequence.planned == self.planned[number]
        return sequence

    @rule()
    def go_on(self) -> None:
        for number, sequence in self.members.items():
            self.planned[number] += 1
            self.owed[sequence.payer.name] += sequence.output_charge
        over = self.decoding.advance()
        done = [n for n, s in self.members.items() if self.planned[n] == s.positions_max]
        assert sorted(sequence.number for sequence in over) == sorted(done)
        for number in done:
            del self.members[number]

    @invariant()
    def where_each_stands_is_what_it_was_counted_to(self) -> None:
        decoding = self.decoding
        assert sorted(decoding.numbers) == sorted(self.members)
        assert len(decoding) == len(self.members)
        for number, sequence in self.members.items():
            assert decoding.planned(sequence) == self.planned[number]
        growing = {n for n in self.members if self.planned[n] % BLOCK_TOKENS == 0}
        assert {sequence.number for sequence in decoding.full} == growing
        for payer in PAYERS:
            assert payer.served - self.served[payer.name] == self.owed[payer.name]


TestDecodingAgainstCounts = DecodingAgainstCounts.TestCase
