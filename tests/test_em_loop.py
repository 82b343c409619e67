"""The loop of EM by itself, with an E-step that is made up: when it ends, and what is kept."""

from dataclasses import replace
from math import nan
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import sampla
from cases import build_tiny
from sampla.inference.e_step import EStep, FinalProblem
from sampla.inference.infer import maximised
from sampla.inference.state import EMState
from sampla.inference.trace import EMStep


def row(number: int) -> EMStep:
    return EMStep([1.0], [1.0], None, [float(number)], [0.0], mode_norm=0.0, change=1.0, passes=1, mode_error=0.0)


class Scripted(EStep):
    """Steps that cost two products each and end as the script says."""

    def __init__(self, script: dict[int, dict[str, bool]], *, learns: bool = True, max_steps: int = 5) -> None:
        task: Any = SimpleNamespace(em=sampla.EM(max_steps=max_steps), route=SimpleNamespace(learns=learns))
        super().__init__(task)
        self.script, self.started = script, 0

    def start(self, state: EMState) -> EMState:
        self.started += 1
        return state

    def step(self, state: EMState) -> EMState:
        state.model.ledger.products += 2.0
        number = len(state.trace) + 1
        return replace(state, trace=[*state.trace, row(number)], **self.script.get(number, {}))

    def finish(self, state: EMState) -> FinalProblem:
        raise NotImplementedError


def fresh(**changes: Any) -> EMState:
    model: Any = SimpleNamespace(ledger=SimpleNamespace(products=7.0))
    prior: Any = SimpleNamespace(learnt=torch.tensor([True]))
    return EMState(prior, model, **changes)


@pytest.mark.parametrize(
    ("script", "steps"),
    [({3: {"settled": True}}, 3), ({2: {"stuck": True}}, 2), ({}, 5)],
    ids=["settled", "stuck", "steps used up"],
)
def test_the_loop_ends_and_keeps_every_state(script: dict[int, dict[str, bool]], steps: int) -> None:
    kept: list[EMState] = []
    e_step = Scripted(script)
    found = maximised(e_step, fresh(), kept.append)
    assert len(found.trace) == steps
    assert [len(state.trace) for state in kept] == list(range(1, steps + 1))
    assert kept[-1] is found, "what is kept last is where the loop ended"
    assert [each.products for each in found.trace] == [2.0] * steps
    assert all(each.seconds > 0 for each in found.trace)
    assert e_step.started == 1


@pytest.mark.parametrize("wrong", [{"mode_norm": nan}, {"updated_precision": [1e-30]}])
def test_no_loop_settles_where_numbers_end(wrong: dict[str, Any]) -> None:
    class Wrong(Scripted):
        def step(self, state: EMState) -> EMState:
            found = super().step(state)
            return replace(found, trace=[*state.trace, replace(found.trace[-1], **wrong)])

    found = maximised(Wrong({2: {"settled": True}}, max_steps=3), fresh())
    assert len(found.trace) == 3
    assert not found.settled


@pytest.mark.parametrize("ended", ["settled", "stuck"])
def test_a_loop_that_had_ended_makes_no_further_step(ended: str) -> None:
    state = fresh(trace=[row(1)], **{ended: True})
    assert maximised(Scripted({}), state) is state


def test_a_stopped_loop_goes_on_counting_and_nothing_learnt_takes_no_step() -> None:
    assert len(maximised(Scripted({}), fresh(trace=[row(1), row(2)])).trace) == 5
    assert maximised(Scripted({}, learns=False), fresh()).trace == []


@pytest.mark.parametrize(
    ("name", "method", "fewest"),
    [("gaussian-scalar", "krylov", 1), ("categorical", "krylov", 9), ("gaussian-scalar", "samples", 9)],
)
def test_every_e_step_asks_the_rule_whether_it_has_settled(name: str, method: Any, fewest: int) -> None:
    """With one that never says so, the loop goes on to where steps bring nothing, or to the last one, and complains."""
    asked = []

    class Rule(sampla.EM):
        def has_settled(self, trace: list[EMStep], ahead: float, error: float = 0.0) -> bool:  # noqa: ARG002
            asked.append(len(trace))
            return False

    problem = build_tiny(name)
    likelihood = sampla.Gaussian(15.0, learn=False) if name == "gaussian-scalar" else None
    options: dict[str, Any] = {} if likelihood is None else {"likelihood": likelihood}
    with pytest.warns(sampla.ConvergenceWarning, match="EM was asked to settle .* a rule of your own"):
        la = problem.fit("isotropic", solver="block-cg", em=Rule(method=method, max_steps=12), **options)
    assert asked == list(range(1, len(la.report_.trace) + 1))
    assert len(asked) >= fewest
