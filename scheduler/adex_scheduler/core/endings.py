"""How sequences end: each exactly once, its asker told why, and everything it held given back."""

from adex_proto.errors import AdexError, DeadlineUnmeetable, Overloaded, SourceUnavailable
from adex_proto.sampling import FinishReason
from adex_scheduler.core.admission import Pace
from adex_scheduler.core.batch import Batch
from adex_scheduler.core.block_table import Blocks
from adex_scheduler.core.errands import Errands
from adex_scheduler.core.fairness import Tenants, settle
from adex_scheduler.core.instructions import Fail, Outbox
from adex_scheduler.core.limits import Limits
from adex_scheduler.core.residency import Residency
from adex_scheduler.core.sequence import Sequence, Stage
from adex_scheduler.core.statistics import Counters
from adex_scheduler.core.turns import Turns


class Endings:
    """Ends sequences of one worker. Without a worker (not `connected`) none stands anywhere."""

    def __init__(
        self,
        limits: Limits,
        sequences: dict[int, Sequence],
        *,
        tenants: Tenants,
        residency: Residency,
        errands: Errands,
        turns: Turns,
        batch: Batch,
        blocks: Blocks,
        counters: Counters,
        pace: Pace,
        out: Outbox,
    ) -> None:
        self.connected = False
        self._limits = limits
        self._sequences = sequences
        self._tenants = tenants
        self._residency = residency
        self._errands = errands
        self._turns = turns
        self._batch = batch
        self._blocks = blocks
        self._counters = counters
        self._pace = pace
        self._out = out

    # For those who wait.

    def refuse(self, sequence: Sequence, error: AdexError) -> None:
        """Fail a waiting sequence that stands nowhere."""
        self._stand_down(sequence)
        self.fail(sequence, error)

    def refuse_failed(self) -> None:
        """Fail those that an adapter's failure has doomed."""
        failed = self._residency.failed
        while failed:
            self.refuse(*failed.pop(0))

    def end_errand(self, errand: Sequence, error: AdexError | None) -> None:
        """An errand's adapter is where it shall be, or may not be there."""
        self._residency.withdraw(errand)
        self._stand_down(errand)
        self._errands.end(errand, error)

    def expire(self, sequence: Sequence, now: float) -> None:
        """A waiting sequence has waited too long."""
        error: AdexError
        if sequence.begin_by is not None and sequence.begin_by <= now:
            error = DeadlineUnmeetable(
                "The first token can no longer come by the request's deadline",
                remedy="Try again later, or allow more time",
                retry_after_s=self._pace.seconds_per_finish,
            )
        elif sequence.stage is Stage.WAITING_ADAPTER:
            waited = f"{self._limits.wait_s_max:g} s"
            error = SourceUnavailable(f"The adapter was not ready within {waited}")
        else:
            waited = f"{self._limits.wait_s_max:g} s"
            error = Overloaded(
                f"The request waited {waited} without being served", remedy="Try again later"
            )
        self._stop_waiting(sequence)
        self.fail(sequence, error)

    # For anyone.

    def end_early(self, number: int) -> bool:
        """End a sequence nobody wants more tokens of; whether there was one to end."""
        sequence = self._sequences.get(number)
        if sequence is None or sequence.stage is Stage.ENDING:
            return False
        if sequence.errand is not None:
            if not self._errands.stands(sequence):
                self._stop_waiting(sequence)
                self._errands.living -= 1
            return False
        if sequence.stage in (Stage.RUNNING, Stage.PREEMPTED):
            self.leave_steps(sequence)
        else:
            self._stop_waiting(sequence)
        return True

    def fail(self, sequence: Sequence, error: AdexError) -> None:
        """Tell whoever asked for the sequence what went wrong with it."""
        if sequence.errand is not None:
            self._errands.end(sequence, error)
            return
        counter = self._counters.failed if sequence.outputs else self._counters.refused
        counter[error.code] += 1
        self._out.answers.append(Fail(sequence.number, error))

    def note_finish(self, reason: FinishReason, now: float) -> None:
        """A sequence has ended as it should."""
        self._counters.finished[reason.value] += 1
        self._pace.note_finish(now)

    def forget(self, sequence: Sequence) -> None:
        """Nothing of the sequence is left anywhere."""
        sequence.move(Stage.ENDED)
        sequence.payer.live -= 1
        del self._sequences[sequence.number]

    # For those who run.

    def leave_steps(self, sequence: Sequence) -> None:
        """A running or preempted sequence is answered; its blocks come back behind the fence."""
        if sequence.stage is Stage.RUNNING:
            self._batch.leave(sequence)
        sequence.move(Stage.ENDING)

    def release(self, sequence: Sequence, now: float) -> None:
        """The plan that listed the sequence as finished has retired: nothing touches its blocks."""
        self._blocks.release(sequence, now)
        self._batch.release(sequence)
        self._residency.unpin(sequence, now)
        if sequence.stage is Stage.PREEMPTED:
            sequence.rewind()
            self._tenants.begin_waiting(sequence.payer)
            self._residency.rejoin(sequence)
        else:
            self.forget(sequence)

    def _stop_waiting(self, sequence: Sequence) -> None:
        """End a waiting sequence, which may stand somewhere."""
        if self.connected:
            self._residency.withdraw(sequence)
        self._stand_down(sequence)

    def _stand_down(self, sequence: Sequence) -> None:
        self._turns.note_gone(sequence)
        settle(sequence)
        if sequence.errand is None:
            self._tenants.end_waiting(sequence.payer)
        self.forget(sequence)
