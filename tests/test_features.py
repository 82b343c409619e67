"""Feature maps: both products against dense matrices, adjoint to each other, for every dtype, input and output."""

import pytest
import torch
from scipy.sparse import csr_array
from torch import nn

import sampla
from cases import FULL_NOISE, batches, linear_model, randn, small_network
from dense import call, curvature, fast_jacobian, jacobian
from sampla.features import OutputsAt, ScaledFeatures, adjoint_error, check_adjoint

TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}


class TwoInputs(nn.Module):
    """Takes (a, b) and returns outputs of a chosen inner shape."""

    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        self.first, self.second = nn.Linear(3, 5), nn.Linear(7, torch.Size(shape).numel())

    def forward(self, a, b):
        return self.second(torch.cat([torch.tanh(self.first(a)), b], 1)).view(len(a), *self.shape)


def a_network(dtype):
    model = small_network(3).to(dtype)
    return model, randn(6, 1, 8, 8, dtype=dtype)


def two_inputs(kind, shape):
    def build(dtype):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = TwoInputs(shape).to(dtype).eval()
        a, b = randn(6, 3, dtype=dtype), randn(6, 2, seed=1, dtype=dtype)
        return model, {"a": a, "b": b} if kind == "dict" else (a, b)

    return build


NETWORKS = {
    "convolutional": a_network,
    "tuple, (N, C)": two_inputs("tuple", (4,)),
    "dict, (N, L, C)": two_inputs("dict", (2, 3)),
    "tuple, (N,)": two_inputs("tuple", ()),
}


def network_case(name, dtype):
    model, inputs = NETWORKS[name](dtype)
    names = [name for name, _ in model.named_parameters()]
    return sampla.NetworkFeatures(model, names), inputs, jacobian(model.double(), names, _double(inputs)), model


def test_the_references_fast_jacobian_is_the_slow_one():
    model, inputs = a_network(torch.float64)
    names = ["0.weight", "3.bias", "5.weight"]
    assert torch.equal(fast_jacobian(model, names, inputs), jacobian(model, names, inputs))


def _double(inputs):
    if isinstance(inputs, dict):
        return {name: value.double() for name, value in inputs.items()}
    return tuple(value.double() for value in inputs) if isinstance(inputs, tuple) else inputs.double()


def design_case(num_outputs, dtype):
    rows = randn(6, 4, dtype=dtype)
    dense = torch.einsum("nd,ce->ncde", rows.double(), torch.eye(num_outputs).double()).flatten(2)
    return sampla.DesignMatrix(4, num_outputs, dtype), rows, dense


def prepared_case(name, dtype):
    """Centred and scaled columns and an intercept, all applied to products: dense and sparse rows."""
    rows, centre, scale = randn(6, 4, dtype=dtype), randn(4, seed=1).double(), randn(4, seed=2).double().exp()
    rows[1::2, :2] = 0
    design, constants = (rows.double() - centre) / scale, randn(2, 3, seed=3).double()
    dense = torch.einsum("nd,ce->ncde", design, torch.eye(3).double()).flatten(2)
    if "intercept" in name:
        dense = torch.cat([dense, constants.mT.expand(6, 3, 2)], dim=2)
    features = sampla.DesignMatrix(
        4, 3, dtype, centre=centre, scale=scale, constants=constants if "intercept" in name else None
    )
    return features, (csr_array(rows.numpy()),) if "sparse" in name else rows, dense


def feature_case(name, dtype):
    if name.startswith("prepared"):
        return prepared_case(name, dtype)
    if name.startswith("design"):
        return design_case(int(name[-1]), dtype)
    if name == "scaled":
        features, inputs, dense, _ = network_case("convolutional", dtype)
        scale = randn(dense.shape[-1]).exp()
        scale[3] = 0  # a parameter taken out
        return ScaledFeatures(features, scale.to(dtype)), inputs, dense * scale
    if name == "outputs at":
        features, inputs, dense, _ = network_case("convolutional", dtype)
        return OutputsAt(features, randn(1, dense.shape[-1], dtype=dtype)), inputs, dense
    return network_case(name, dtype)[:3]


DESIGNS = ["design 1", "design 3", "prepared", "prepared intercept", "prepared sparse", "prepared sparse intercept"]
CASES = [*DESIGNS, "scaled", "outputs at", *NETWORKS]
every_feature_map = pytest.mark.parametrize("name", CASES)
every_dtype = pytest.mark.parametrize("dtype", TOLERANCE)


def assert_near(found, expected, dtype):
    assert found.dtype == dtype
    assert float((found.double() - expected).norm()) <= TOLERANCE[dtype] * float(expected.norm())


@every_feature_map
@every_dtype
def test_both_products_agree_with_the_dense_matrix(name, dtype):
    features, inputs, dense = feature_case(name, dtype)
    at = features.linearise(inputs)
    v, u = randn(5, features.layout.total, dtype=dtype), randn(5, *at.outputs.shape, seed=1, dtype=dtype)
    pushed, pulled = at.jvp(v), at.vjp(u)
    assert pushed.shape == u.shape
    assert_near(pushed.reshape(5, 6, -1), torch.einsum("ncp,kp->knc", dense, v.double()), dtype)
    assert_near(pulled, torch.einsum("ncp,knc->kp", dense, u.double().reshape(5, 6, -1)), dtype)


@pytest.mark.parametrize("name", DESIGNS)
@every_dtype
def test_squares_of_each_datums_gradient(name, dtype):
    """Also through a scaling of the parameters and with the curvature taken elsewhere."""
    features, inputs, dense = feature_case(name, dtype)
    u = randn(5, *features.linearise(inputs).outputs.shape, dtype=dtype)
    expected = torch.einsum("ncp,knc->knp", dense, u.double()).square().sum(1).mean(0)
    scale = randn(dense.shape[-1], seed=4, dtype=dtype)
    moved = OutputsAt(features, torch.zeros(1, dense.shape[-1], dtype=dtype))
    for one, factor in ((features, 1.0), (ScaledFeatures(features, scale), scale.double() ** 2), (moved, 1.0)):
        assert one.squares_data
        assert one.absorbed == features.absorbed
        assert_near(one.linearise(inputs).squared_vjp(u), expected * factor, dtype)


def test_networks_do_not_square_the_gradient_of_each_datum():
    features, inputs, _, _ = network_case("convolutional", torch.float64)
    assert not features.squares_data
    with pytest.raises(NotImplementedError, match="does not square"):
        features.linearise(inputs).squared_vjp(torch.ones(1))


@every_feature_map
@every_dtype
def test_the_products_are_adjoint(name, dtype):
    features, inputs, _ = feature_case(name, dtype)
    assert check_adjoint(features.linearise(inputs), features.layout.total) < 10 * torch.finfo(dtype).eps


def test_a_wrong_derivative_is_found():
    """A custom function whose backward pass is off by 1 %: jvp is right, vjp is not."""
    features, inputs, dense = design_case(2, torch.float64)

    class Wrong(type(features.linearise(inputs))):
        def vjp(self, cotangents):
            return 1.01 * super().vjp(cotangents)

    wrong = Wrong(inputs, features)
    assert adjoint_error(wrong, dense.shape[-1]) > 1e-4
    with pytest.raises(ValueError, match=r"<phi v, u> = <v, phi' u> .*wrong derivative"):
        check_adjoint(wrong, dense.shape[-1])


@pytest.mark.parametrize("name", NETWORKS)
def test_linearised_outputs_are_the_networks_own(name):
    features, inputs, _, model = network_case(name, torch.float64)
    torch.testing.assert_close(features.linearise(inputs).outputs, call(model, inputs).detach())


def test_outputs_at_are_those_of_the_linear_model():
    features, inputs, dense = feature_case("outputs at", torch.float64)
    expected = dense @ randn(1, dense.shape[-1])[0]
    torch.testing.assert_close(features.linearise(inputs).outputs, expected)


@every_dtype
def test_curvature_product_sums_over_batches_and_many_columns(dtype):
    """More columns than go through the network at once, batches that do not divide the pieces."""
    features, inputs, dense = feature_case("convolutional", dtype)
    weights = torch.tensor([1.0, 2.0, 3.0]).double()
    model = linear_model(features, sampla.Gaussian(weights), batches(inputs, torch.zeros(6, 3).to(dtype), 4))
    v = randn(70, features.layout.total, dtype=dtype)
    expected = v.double() @ curvature(dense, weights.diag().expand(6, 3, 3))
    assert_near(model.curvature_product(v), expected, dtype)


@pytest.mark.parametrize(
    ("name", "likelihood", "targets"),
    [
        ("dict, (N, L, C)", sampla.Categorical, torch.arange(12).view(6, 2) % 3),
        ("dict, (N, L, C)", lambda: sampla.Gaussian(2.0), randn(6, 2, 3)),
        ("dict, (N, L, C)", lambda: sampla.Gaussian(FULL_NOISE), randn(6, 2, 3)),
        ("dict, (N, L, C)", sampla.Bernoulli, randn(6, 2, 3).sign().clamp_min(0)),
        ("tuple, (N, C)", sampla.Categorical, torch.arange(6) % 4),
        ("tuple, (N,)", sampla.Bernoulli, (torch.arange(6) % 2).double()),
        ("tuple, (N,)", lambda: sampla.Gaussian(2.0), randn(6)),
    ],
)
@every_dtype
def test_any_input_and_output_shape_goes_through_a_whole_fit(name, likelihood, targets, dtype):
    model, inputs = NETWORKS[name](dtype)
    targets = targets.to(dtype) if targets.is_floating_point() else targets
    la = sampla.LinearisedLaplace(model, likelihood(), sampla.GPrior(1.0, learn=False), num_samples=4, progress=False)
    pred = la.fit([(inputs, targets)]).predict(inputs)
    assert pred.variance.shape == pred.mean.shape == call(model, inputs).shape
    assert pred.log_prob(targets).shape == (6,)
    assert bool(pred.log_prob(targets).isfinite().all())


def test_samples_come_back_under_their_parameters_names():
    model, inputs = NETWORKS["tuple, (N, C)"](torch.float64)
    la = sampla.LinearisedLaplace(
        model, "categorical", sampla.Isotropic(1.0, learn=False), num_samples=3, progress=False
    )
    la.fit([(inputs, torch.arange(6) % 4)])
    assert {n: s.shape for n, s in la.samples_.items()} == {n: (3, *p.shape) for n, p in model.named_parameters()}
    pushed = jacobian(model, list(la.samples_), inputs) @ torch.cat([s.flatten(1) for s in la.samples_.values()], 1).mT
    torch.testing.assert_close(la.predict(inputs).deviations, pushed.movedim(-1, 0))
