"""What a step takes, learned from the steps there have been: its decodes, and prompts beside them.

A decode reads a cache of its own, and where steps of decodes are recorded they alone are launched
whole; a prompt token is one of many rows of few sequences. And steps of decodes come by the
hundred, over which one fit for both forgets what prompts cost. Therefore each is learned by itself:
decodes from the steps that have nothing else, prompt tokens from what the others take beyond that.

From it follows how many prompt tokens a step may have, if those who decode in it shall not wait too
long for their next token: stall-free batching (Agrawal et al. 2024, arXiv:2403.02310), with a
budget in time, and that of the very machine, instead of tokens.
"""

from dataclasses import dataclass, field

from adex_scheduler.core.fit import DECAY, OUTLIER, CostFit
from adex_scheduler.core.limits import Pacing

# This part of the tokens a step may have is for prompts in any case: they go on, however slowly.
_PROMPT_SHARE = 32
# After so many steps with prompts beside decodes one goes without, or what decodes take alone would
# not be known any more: it would pass for what prompts take, these would get ever less, and so
# there would be prompts in every step, for ever.
STEPS_BESIDE_MAX = 64
# Prompts that wait for each sequence that decodes, from which on they count for more.
_WAITING_SHARE = 0.25
# What is learned holds for steps like those it was learned from. Beyond, one goes in such strides;
# of small ones it is believed up to so many tokens, or a long prompt after short ones would crawl.
STRIDE = 2
_REACH_MIN = 64.0
# More prompt tokens than any step has, and less time than any of them takes.
_TOKENS_MAX = 2.0**31
_S_PER_TOKEN_MIN = 1e-9


def prompt_tokens_min(step_tokens_max: int) -> int:
    """Prompt tokens for which a paced step has room whatever it takes, if there are no more decodes
    than leave it that much.
    """
    return max(step_tokens_max // _PROMPT_SHARE, 1)


def _assumed_alone() -> CostFit:
    return CostFit(0.005, 1e-5, typical=(1.0, 64.0))


@dataclass(slots=True)
class StepTime:
    """Seconds of a step, by its decodes and its prompt tokens."""

    alone: CostFit = field(default_factory=_assumed_alone)
    """Of steps of decodes only."""
    prompt_fixed_s: float = 0.0
    s_per_prompt_token: float = 1e-5
    """What a step takes more for having prompts at all, and for each of their tokens."""
    _reach: float = 256.0
    """The most prompt tokens that a step has had of late."""
    # Decayed sums over steps with prompts: of 1, tokens, tokens squared, what they took beyond
    # their decodes, and tokens times that.
    _sums: tuple[float, ...] = (0.0, 0.0, 1.0, 0.0, 1e-5)

    def seconds(self, decodes: int, prompt_tokens: int) -> float:
        """What such a step is expected to take."""
        alone_s = self.alone.seconds(decodes)
        if not prompt_tokens:
            return alone_s
        return alone_s + self.prompt_fixed_s + prompt_tokens * self.s_per_prompt_token

    def observe(self, decodes: int, prompt_tokens: int, seconds: float) -> None:
        """Such a step has taken so long."""
        if not prompt_tokens:
            self.alone.observe(decodes, seconds)
            return
        seconds = min(seconds, OUTLIER * self.seconds(decodes, prompt_tokens))
        beyond = max(seconds - self.alone.seconds(decodes), 0.0)
        self._reach = max(float(prompt_tokens), DECAY * self._reach, _REACH_MIN)
        n, x, xx, y, xy = self._sums
        n, x, y = DECAY * n + 1.0, DECAY * x + prompt_tokens, DECAY * y + beyond
        xx, xy = DECAY * xx + prompt_tokens * prompt_tokens, DECAY * xy + prompt_tokens * beyond
        self._sums = n, x, xx, y, xy
        # Least squares, with a step in which no prompt tokens took nothing: steps of one size then
        # tell what a token takes, and steps of several whether there is a fixed part.
        n += 1.0
        slope = (n * xy - x * y) / (n * xx - x * x)
        fixed = (y - slope * x) / n
        if slope < 0.0 or fixed < 0.0:
            fixed, slope = 0.0, xy / xx
        self.prompt_fixed_s, self.s_per_prompt_token = fixed, max(slope, _S_PER_TOKEN_MIN)

    def prompt_room(
        self, decodes: int, prompts: int, pacing: Pacing, *, in_strides: bool = True
    ) -> int:
        """Prompt tokens for which a step of so many decodes has time.

        `prompts` are those under way and those that could begin. Where they are many beside the
        decodes, stretched steps are stretched further in proportion: if few decode because most
        have yet to come so far, short steps help nobody. A target in seconds is kept to.
        `in_strides`: no more than the next stride beyond what there has been of late.
        """
        alone_s = self.alone.seconds(decodes)
        least_s = alone_s + self.prompt_fixed_s
        if pacing.target_s is not None:
            spare_s = pacing.target_s - least_s
        else:
            # Where having any prompt tokens at all costs much, cutting them further saves little:
            # they have at least half of the step.
            crowding = (prompts - 1) / (_WAITING_SHARE * decodes)
            spare_s = max(pacing.stretch_max * alone_s - least_s, least_s) * max(crowding, 1.0)
        room = STRIDE * self._reach if in_strides else _TOKENS_MAX
        if spare_s < room * self.s_per_prompt_token:
            room = spare_s / self.s_per_prompt_token
        return max(int(room), 0)
