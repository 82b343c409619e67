"""Traces and EM's fixed point read off a Krylov space, against explicit matrices and the same probes."""

import warnings
from dataclasses import replace
from math import exp, inf, log

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

import dense
import sampla
from cases import SPECTRA, batches, linear_model, randn, spectrum_model
from sampla.inference.krylov import krylov_space
from sampla.inference.mackay import settled_error
from sampla.inference.quadrature import FixedPoint, estimated, gamma, log_determinant

SIZE, NUM_DATA = 60, 90
every_spectrum = pytest.mark.parametrize("name", SPECTRA)
FORMS = {
    "gamma": (gamma, lambda x, a: 1 / (x + a)),
    "log det": (log_determinant, lambda x, a: torch.where(x > 0, torch.log1p(x / a) / x.clamp_min(1e-300), 1 / a)),
}
every_form = pytest.mark.parametrize("form", FORMS)


def spaces(model, start, iterations=100):
    """After every product."""
    found = [krylov_space(start).grown(model)]
    while not found[-1].complete and found[-1].iterations < iterations:
        found.append(found[-1].grown(model))
    return found


@every_spectrum
@every_form
def test_an_estimate_is_as_near_to_what_its_probes_see_as_it_says(name, form):
    """For these probes: within the bounds always, and within four times the truncation error (the bounds allow no
    more); where it says 1 % the first time, within 2 %: the worst of 288 such cases is 1.6 %."""
    read, function = FORMS[form]
    model, matrix = spectrum_model(name)
    stops = 0
    for seed in range(3):
        probes = model.draw_noise(seed, 4).data_part
        found = spaces(model, torch.cat([probes, randn(1, SIZE)]))
        for a in torch.logspace(-3, 3, 7).double():
            truth = float(dense.quadratic_forms(matrix, lambda x, a=a: function(x, a), probes).mean())
            stopped = False
            for space in found:
                estimate = estimated(space, 4, read, float(a))
                slack = 1e-7 * truth
                assert estimate.lower - slack <= truth <= estimate.upper + slack
                assert abs(estimate.value - truth) <= 4 * estimate.truncation + slack
                assert estimate.truncation <= (estimate.upper - estimate.lower) / 2 + slack
                if not stopped and space.iterations >= 3 and estimate.truncation <= 0.01 * estimate.value:
                    stopped, stops = True, stops + 1
                    assert abs(estimate.value - truth) <= 0.02 * truth
            assert estimate.truncation <= slack, "a complete space knows all of its probes"
            assert estimate.value == pytest.approx(truth, rel=1e-7)
    assert stops == 21


@every_spectrum
def test_standard_errors_are_those_of_repeated_draws(name):
    """8 probes each, 40 seeds: z against the trace of the explicit matrix, whose mean square is 1 with a standard
    deviation of (2 / 40)^(1/2); and the error itself against (2 tr (M f(M))^2 / 8)^(1/2), to a third at the worst."""
    model, matrix = spectrum_model(name)
    exact = {
        "gamma": float(torch.linalg.solve(matrix + torch.eye(SIZE), matrix).trace()),
        "log det": dense.log_determinant(matrix, torch.ones(SIZE).double()),
    }
    values = torch.linalg.eigvalsh(matrix).clamp_min(0)
    spread = {form: float((2 * (values * f(values, 1.0)).square().sum() / 8).sqrt()) for form, (_, f) in FORMS.items()}
    z = {form: [] for form in FORMS}
    for seed in range(40):
        space = spaces(model, model.draw_noise(seed, 8).data_part)[-1]
        for form, (read, _) in FORMS.items():
            estimate = estimated(space, 8, read, 1.0)
            z[form].append((estimate.value - exact[form]) / estimate.standard_error)
            assert estimate.standard_error == pytest.approx(spread[form], rel=0.33)
    for scores in map(torch.tensor, z.values()):
        assert abs(float(scores.mean())) < 3 * (1 / 40) ** 0.5
        assert abs(float(scores.square().mean()) - 1) < 3 * (2 / 40) ** 0.5


def test_one_probe_tells_its_own_error_but_not_that_of_alpha():
    model, matrix = spectrum_model("flat")
    space = spaces(model, model.draw_noise(0, 1).data_part)[-1]
    values = torch.linalg.eigvalsh(matrix).clamp_min(0)
    error = float((2 * (values / (1 + values)).square().sum()).sqrt())
    assert estimated(space, 1, gamma, 1.0).standard_error == pytest.approx(error, rel=0.33)
    assert FixedPoint(space, 1, mode_size=(1.0, 30.0, -1.0)).solved(1.0).precision_error.standard_error == inf


@pytest.mark.parametrize("unit", [1e-20, 1.0, 1e20])
def test_alpha_of_a_mode_that_vanishes_ends_where_the_data_say_nothing_in_any_unit(unit):
    """|mode|^2 falls as alpha^-2.5, faster than gamma can: there is no fixed point."""
    rows = unit**0.5 * dense.prescribed(SPECTRA["flat"], NUM_DATA)
    model = linear_model(sampla.DesignMatrix(SIZE), sampla.Gaussian(1.0), batches(rows, rows[:, :1], 50))
    space = spaces(model, model.draw_noise(0, 4).data_part)[-1]
    largest = float(torch.linalg.eigvalsh(rows.mT @ rows).max())
    found = FixedPoint(space, 4, mode_size=(unit, 1e-9 / unit, -2.5)).solved(unit)
    assert found.hyper.precision == pytest.approx(1e8 * largest, rel=1e-6)
    assert found.precision_error.truncation < 1e-6


@pytest.mark.parametrize(
    ("history", "bracket", "expected"),
    [
        ([1.0], 0.7, 0.7),  # nothing to go by
        ([1.0, 0.5], 0.7, 0.7),
        ([1.0, 0.5, 0.25], 0.7, 0.25),  # a geometric sequence goes to zero
        ([1.0, 0.9, 0.89], 0.001, 0.001),  # no more than is proved
        ([1.0, 0.5, 0.25], 10.0, 2.5),  # nor less than a quarter of it
        ([1.0, 1.0, 1.0], 0.4, 0.1),
        ([1.0, 0.9, 0.5], 100.0, 25.0),  # a sequence that moves faster and faster is not followed to infinity
        ([1.0, 0.9, 0.5], 5.0, 3.6),  # (a rate of 0.9 at most)
    ],
)
def test_the_error_of_a_sequence(history, bracket, expected):
    assert settled_error(history, bracket) == pytest.approx(expected)


class Regression:
    """90 noisy data of a model with a known prior precision and noise, whatever the spectrum; M at noise 1."""

    def __init__(self, name, seed=0, probes=4, noise=0.5):
        rows = dense.prescribed(SPECTRA[name], NUM_DATA)
        truth, spread = randn(SIZE, seed=100 + seed), noise * randn(NUM_DATA, seed=200 + seed)
        self.targets = (rows @ truth + spread)[:, None]
        self.model = linear_model(sampla.DesignMatrix(SIZE), sampla.Gaussian(1.0), batches(rows, self.targets, 50))
        self.probes = self.model.draw_noise(seed, probes).data_part
        self.reference = dense.ProbedEM(
            rows.mT @ rows, self.probes, rows.mT @ self.targets[:, 0], float(self.targets.square().sum()), NUM_DATA
        )

    def fixed_point(self, iterations=100, **options):
        start = torch.cat([self.probes, self.reference.target[None]])
        return FixedPoint(
            spaces(self.model, start, iterations)[-1], len(self.probes),
            target_size=self.reference.target_size, entries=NUM_DATA, **options,
        )  # fmt: skip


LEARNT = {"prior": (True, False), "both": (True, True), "noise": (False, True)}


@every_spectrum
@pytest.mark.parametrize("what", LEARNT)
@pytest.mark.parametrize("start", [100.0, 0.01])
def test_the_fixed_point_is_that_of_a_dense_em_with_the_same_probes(name, what, start):
    """And a complete space says that it knows it."""
    case, (prior, noise) = Regression(name), LEARNT[what]
    alpha, factor = case.reference.run(start, prior, noise)
    found = case.fixed_point(learn_prior=prior, learn_noise=noise, precision=start).solved(start)
    assert found.hyper.precision == pytest.approx(alpha, rel=1e-6)
    assert found.hyper.noise_factor == pytest.approx(factor, rel=1e-6)
    assert found.hyper.ratio == pytest.approx(alpha / factor, rel=1e-6)
    assert max(found.precision_error.truncation, found.noise_error.truncation) < 1e-6
    assert (found.precision_error.standard_error == 0) == (not prior)
    assert (found.noise_error.standard_error == 0) == (not noise)


@every_spectrum
def test_a_fixed_prior_and_noise_stay(name):
    case = Regression(name)
    found = case.fixed_point(learn_prior=False, precision=3.0).solved(3.0)
    assert (found.hyper.precision, found.hyper.noise_factor) == (3.0, 1.0)


@every_spectrum
@pytest.mark.parametrize("what", ["prior", "both"])
def test_a_space_on_its_way_is_as_near_as_it_says(name, what):
    """Once it says 2 %, it is within four times what it says, as ``settled_error`` allows."""
    case, (prior, noise) = Regression(name), LEARNT[what]
    alpha, factor = case.reference.run(1.0, prior, noise)
    said = []
    for iterations in range(3, 12):
        found = case.fixed_point(iterations, learn_prior=prior, learn_noise=noise).solved(1.0)
        if found.precision_error.truncation <= 0.02:
            assert abs(log(found.hyper.precision / alpha)) <= 4 * found.precision_error.truncation + 1e-7
            assert abs(log(found.hyper.noise_factor / factor)) <= 4 * found.noise_error.truncation + 1e-7
            said.append(iterations)
    assert said, "it must come to that before it is complete"


@every_spectrum
@pytest.mark.parametrize("slope", [0.0, -0.7])
def test_the_fixed_point_beside_a_mode_found_elsewhere(name, slope):
    """gamma(a) = a |mode|^2 with |mode|^2 = 5 (a / 0.3)^slope: a root that any root finder finds."""
    case = Regression(name)

    def step(place):
        return log(case.reference.gamma(exp(place))) - place - log(5.0) - slope * (place - log(0.3))

    found = case.fixed_point(mode_size=(0.3, 5.0, slope)).solved(0.3)
    assert log(found.hyper.precision) == pytest.approx(brentq(step, -30, 30), abs=1e-6)
    assert found.hyper.noise_factor == 1


@every_spectrum
def test_the_jackknife_is_the_spread_of_alpha_over_the_noise(name):
    """30 draws of the probes beside the same data, of which 8 give an error known to 25 %: within a factor of two."""
    case, logs, stated = Regression(name), [], []
    for seed in range(30):
        case.probes = case.model.draw_noise(seed, 8).data_part
        found = case.fixed_point().solved(1.0)
        logs.append(log(found.hyper.precision))
        stated.append(found.precision_error.standard_error)
    ratio = float(torch.tensor(stated).square().mean().sqrt() / torch.tensor(logs).std())
    assert 0.5 < ratio < 2


def test_a_space_that_is_too_small_says_so():
    """One product of a power law: at a weak prior the two rules differ by more than half, and nothing is claimed."""
    case = Regression("power law")
    small = case.fixed_point(1)
    assert small.reach(1e-3) is None
    lost = small.solved(1e-3)
    assert lost.precision_error.truncation == lost.precision_error.standard_error == inf
    assert small.reach(1e3) is not None
    stopped = small.solved(1e3)
    assert stopped.precision_error.truncation == stopped.noise_error.truncation == inf
    assert stopped.hyper.ratio <= small.reach(1e3) * 1.001
    alpha, _ = case.reference.run(1e3, True, False)
    assert alpha < small.reach(1e3), "what EM would go to lies beyond what the space knows"


def test_the_reach_ends_where_the_rules_part():
    """Down to there gamma's two rules agree within a factor of 1.5, by explicit quadrature; one step on they do not."""
    fixed = Regression("power law").fixed_point(2, mode_size=(1.0, 1.0, 0.0))

    def factor(a):
        below, above = (float(gamma(rule, a)[:4].mean()) for rule in (fixed.space.gauss, fixed.space.gauss_radau))
        return above / below

    reach = fixed.reach(1e3)
    assert factor(reach) <= 1.5 < factor(reach * exp(-0.1))
    assert fixed.reach(1e3, lowest=10.0) == pytest.approx(10.0)
    whole = replace(fixed, space=Regression("power law").fixed_point().space)
    assert whole.reach(1e3) == pytest.approx(1e-12)


@pytest.fixture
def regression():
    """A network-free regression on a spectrum that 16 rows cannot hold."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = torch.nn.Linear(SIZE, 1, bias=False).double().eval()
    rows = dense.prescribed(SPECTRA["power law"], NUM_DATA)
    return net, [(rows, rows @ randn(SIZE, 1) + 0.1 * randn(NUM_DATA, 1, seed=1))]


@pytest.mark.parametrize(("max_rows", "settled"), [(16, False), (256, True)])
def test_too_few_rows_are_said_in_plain_words(regression, max_rows, settled):
    net, loader = regression
    la = sampla.LinearisedLaplace(
        net, sampla.Gaussian(100.0), "isotropic", solver="block-cg", em=sampla.EM(max_rows=max_rows), progress=False
    )
    if settled:
        la.fit(loader)
    else:
        with pytest.warns(sampla.ConvergenceWarning, match=r"EM was asked to settle within 2%, and after \d steps"):
            la.fit(loader)
        assert "NOT settled" in str(la.report_)
        assert "EM(max_rows=...)" in la.report_.advice
    assert la.report_.settled is settled


@pytest.mark.parametrize(("max_rows", "settled"), [(256, False), (None, True)])
def test_small_vectors_may_fill_a_larger_space(max_rows, settled):
    """Data that determine nearly all of 400 weights: 256 vectors do not tell alpha, and steps do not run out."""
    size = 400
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = torch.nn.Linear(size, 1, bias=False).double().eval()
    x = dense.prescribed(np.logspace(2, -6, size).tolist(), 2 * size)
    w, noise = randn(size, 1), 1e-5 * randn(2 * size, 1, seed=1)
    la = sampla.LinearisedLaplace(
        net, "gaussian", "isotropic", solver="block-cg", em=sampla.EM(max_rows=max_rows), progress=False
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", sampla.ConvergenceWarning)
        la.fit([(x, x @ w + noise)])
    assert la.report_.settled is settled
    assert any("EM was asked to settle" in str(one.message) for one in caught) is not settled
    if settled:
        assert float(la.prior_precision_) == pytest.approx(1 / float(w.square().mean()), rel=0.1)
        assert len(la.report_.trace) < 30


def test_how_many_rows_a_space_may_have():
    like = torch.zeros(0)
    rows = [sampla.EM().rows_of(like, size) for size in (737, 100_000, 11_000_000)]
    assert rows == [1024, 2**28 // 400_000, 256]
    assert sampla.EM(max_rows=40).rows_of(like, 737) == 40
