"""Fitting: a machine is found again from steps it would have taken."""

from itertools import product

import numpy as np
import pytest

from adex_scheduler.simulate.fit import MeasuredStep, fit_link, fit_step, mean_error
from adex_scheduler.simulate.machine import LinkCost, StepCost

TRUE = StepCost(2e-3, 64 * 1e-4, 1e-4, 2e-5, 3e-7, 1e-3, 4e-11)


def measured(noise: float = 0.0) -> list[MeasuredStep]:
    chance = np.random.RandomState(0)
    found = []
    for sequences, each, context, adapters in product((1, 4, 16), (1, 16, 64), (0, 500), (0, 1, 4)):
        work = {
            "tokens": sequences * each,
            "sequences": sequences,
            "kv_tokens": sequences * (each + context),
            "adapters": adapters,
            "adapter_bytes": 3e7 * adapters,
        }
        seconds = TRUE.seconds(**work) * (1 + noise * chance.standard_normal())
        found.append(MeasuredStep(**work, seconds=seconds))
    return found


def test_a_machine_is_found_again_from_its_steps() -> None:
    cost = fit_step(measured())
    assert cost.weights_s == pytest.approx(TRUE.weights_s, rel=0.01)
    assert cost.adapter_byte_s == pytest.approx(TRUE.adapter_byte_s, rel=0.01)
    assert mean_error(cost, measured()) < 1e-6


def test_noise_costs_no_more_than_itself() -> None:
    assert mean_error(fit_step(measured(noise=0.05)), measured()) < 0.05


def test_no_coefficient_is_negative() -> None:
    flat = [
        MeasuredStep(1, 1, context, 0, 0.0, 1.0 - context / 1e4) for context in range(0, 500, 50)
    ]
    assert min(fit_step(flat).kv_token_s, fit_step(flat).token_s) >= 0


def test_a_link_is_found_again_from_its_transfers() -> None:
    link = LinkCost(0.003, 2e9)
    found = fit_link([(size, link.seconds(size)) for size in (1e6, 2e7, 3e8)])
    assert found.fixed_s == pytest.approx(0.003)
    assert found.bytes_per_s == pytest.approx(2e9)
