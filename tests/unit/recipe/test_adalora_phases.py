"""AdaLoRA's phases: what is refused, and equality with PEFT's own schedule."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft import AdaLoraConfig
from peft.tuners.adalora.layer import RankAllocator

from distft.recipe.adalora_phases import Phases, plan_phases
from distft.recipe.adapters import AdaLora


def adapter(**given: int | None) -> AdaLora:
    return AdaLora(type="adalora", **given)  # type: ignore[arg-type]


@given(total=st.integers(1, 5000))
def test_what_is_not_given_fits_any_run(total: int) -> None:
    phases = plan_phases(adapter(), total)
    allocations = [step for step in range(1, total + 1) if phases.allocates(step)]
    assert allocations
    assert allocations[-1] == phases.fixed_at
    assert phases.budget(phases.fixed_at, 100, 40) == 40
    assert len(allocations) >= min(10, phases.fixed_at - phases.tinit)


@given(total=st.integers(2, 400), tinit=st.integers(0, 200), tfinal=st.integers(0, 200), delta_t=st.integers(1, 20))
def test_the_budget_is_that_of_peft(total: int, tinit: int, tfinal: int, delta_t: int) -> None:
    if tinit + tfinal >= total:
        with pytest.raises(ValueError, match=f"tinit {tinit} .* tfinal {tfinal} = {tinit + tfinal} .* {total} steps"):
            plan_phases(adapter(tinit=tinit, tfinal=tfinal), total)
        return
    phases = Phases(total, tinit, tfinal, delta_t)
    theirs = RankAllocator.__new__(RankAllocator)
    theirs.peft_config = AdaLoraConfig(total_step=total, tinit=tinit, tfinal=tfinal, deltaT=delta_t)
    theirs.init_bgt, theirs.target_bgt = 144, 96
    for step in range(1, total + 1):
        budget, masks = theirs.budget_schedule(step)
        assert phases.budget(step, 144, 96) == budget
        if step < phases.fixed_at:
            assert phases.allocates(step) == masks
