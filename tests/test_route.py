"""Which way a fit goes, decided once: the settings in a table, and what they lead to."""

from typing import Any

import pytest
import torch
from torch import nn

import sampla
from cases import linear_model, randn
from sampla.inference.route import Route, choose_route

ROWS, COLUMNS = 30, 5


def route(solver: Any, em: dict[str, Any], **changes: Any) -> Route:
    settings = {"likelihood": sampla.Gaussian(), "prior": sampla.Isotropic()} | changes
    likelihood, prior = settings.pop("likelihood"), settings.pop("prior")
    data = [(randn(ROWS, COLUMNS), torch.zeros(ROWS, 1).double())]
    model = linear_model(sampla.DesignMatrix(COLUMNS), likelihood, data)
    bound = prior.bind(model.features.layout, torch.ones(COLUMNS).double())
    return choose_route(model, bound, solver, sampla.EM(**em), ROWS, **settings)


FIXED = {"likelihood": sampla.Gaussian(4.0), "prior": sampla.Isotropic(2.0, learn=False)}
CASES: dict[str, tuple[Any, dict[str, Any], dict[str, Any], tuple[str, str, bool, str]]] = {
    # settings -> how the report calls it, what the final solve starts from, exact traces, where log det comes from
    "block-cg": (sampla.BlockCG(), {}, {}, ("krylov", "krylov", True, "one space")),
    "sampled traces": (sampla.BlockCG(), {"exact_up_to": 4}, {}, ("krylov", "krylov", False, "one space")),
    "no evidence": (sampla.BlockCG(), {}, {"log_evidence": False}, ("krylov", "krylov", True, "nowhere")),
    "samples": (sampla.BlockCG(), {"method": "samples"}, {}, ("samples", "samples", True, "its own space")),
    "full noise": (
        sampla.BlockCG(), {}, {"likelihood": sampla.Gaussian(structure="full")},
        ("samples", "samples", True, "its own space"),
    ),
    "curvature at the mode": (
        sampla.BlockCG(), {}, {"likelihood": sampla.Bernoulli(), "curvature_at": "linear-mode"},
        ("krylov", "krylov", True, "one space"),
    ),
    "curvature at the mode, by samples": (
        sampla.BlockCG(), {"method": "samples"}, {"likelihood": sampla.Bernoulli(), "curvature_at": "linear-mode"},
        ("samples", "samples", True, "its own space"),
    ),
    "curvature at the mode, dense": (
        sampla.Dense(), {}, {"likelihood": sampla.Bernoulli(), "curvature_at": "linear-mode"},
        ("samples", "samples", False, "solver"),
    ),
    "mode of a Gaussian": (
        sampla.BlockCG(), {}, {"curvature_at": "linear-mode"}, ("krylov", "krylov", True, "one space"),
    ),
    "dense": (sampla.Dense(), {}, {}, ("samples", "samples", True, "solver")),
    "dense tells gamma": (
        sampla.Dense(), {}, {"likelihood": sampla.Gaussian(4.0)}, ("samples", "samples", False, "solver"),
    ),
    "minibatch": (sampla.Minibatch(), {}, {}, ("samples", "samples", True, "nowhere")),
    "fixed": (sampla.BlockCG(), {}, FIXED, ("fixed", "krylov", True, "nowhere")),
    "fixed, evidence": (sampla.BlockCG(), {}, {**FIXED, "log_evidence": True}, ("fixed", "krylov", True, "one space")),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:the network's outputs look like probabilities")
def test_settings_lead_to(name: str) -> None:
    solver, em, changes, (method, e_step, exact, determinant) = CASES[name]
    found = route(solver, em, **changes)
    sources = {
        "one space": found.one_space and found.log_evidence,
        "its own space": found.whitened_space,
        "solver": found.solver_tells_determinant,
        "nowhere": not found.log_evidence,
    }
    assert (found.method, found.e_step, found.exact_traces) == (method, e_step, exact)
    assert [source for source, used in sources.items() if used] == [determinant]
    assert found.largest_rank == min(ROWS, COLUMNS)


def test_a_krylov_space_is_refused_where_none_serves_before_anything_is_solved_for() -> None:
    with pytest.raises(ValueError, match=r"expected one alpha, and scalar or fixed noise, for EM\(method='krylov'\)"):
        route(sampla.BlockCG(), {"method": "krylov"}, likelihood=sampla.Gaussian(structure="full"))
    la = sampla.LinearisedLaplace(
        nn.Linear(3, 2).eval(), sampla.Gaussian(structure="full"), em=sampla.EM(method="krylov"), progress=False
    )
    with pytest.raises(ValueError, match=r"expected one alpha, and scalar or fixed noise, for EM\(method='krylov'\)"):
        la.plan([(torch.randn(4, 3), torch.randn(4, 2))])


def test_exact_traces_become_affordable_up_to_eight_times_the_setting() -> None:
    few, many = (route(sampla.BlockCG(), {"exact_up_to": up_to}) for up_to in (1, 0))
    assert few.exact_if_needed
    assert not few.exact_traces
    assert not many.exact_if_needed
