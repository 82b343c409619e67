"""The networks: data, architecture, training, and whether the rule was chosen on them."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from experiments.width import data, networks
from experiments.width.networks import Recipe


@dataclass(frozen=True)
class Call:
    """A function of this package with its settings; its ``repr`` says what it gives."""

    function: Callable[..., Any]
    settings: dict[str, Any]

    def __call__(self, *args: Any) -> Any:
        return self.function(*args, **self.settings)

    def __repr__(self) -> str:
        return f"{self.function.__name__}({self.settings})"


def call(function: Callable[..., Any], **settings: Any) -> Call:
    """A function with its settings."""
    return Call(function, settings)


@dataclass(frozen=True)
class Case:
    """One network."""

    name: str
    data: Call
    """Of the root -> Split."""
    network: Call
    """Of nothing -> an untrained network; without a recipe, of the folder of checkpoints -> a trained one."""
    recipe: Recipe | None
    likelihood: str = "categorical"
    parameters: str | None = None
    used: bool = False
    """Whether the rule was chosen on this network."""

    @property
    def seed(self) -> int:
        """Of the untrained network."""
        return zlib.crc32(self.name.encode()) % 2**31

    @property
    def classes(self) -> bool:
        """Whether it is a classifier."""
        return self.likelihood != "gaussian"


def _mlp(*sizes: int, **settings: Any) -> Call:
    return call(networks.mlp, inputs=sizes[0], hidden=sizes[1:-1], outputs=sizes[-1], **settings)


def _cnn(first: int, second: int, side: int, outputs: int = 10, **settings: Any) -> Call:
    return call(networks.cnn, channels=(first, second), side=side, outputs=outputs, **settings)


def _digits(count: int, **settings: Any) -> Call:
    return call(data.digits, count=count, **settings)


def _pictures(name: str, count: int, **settings: Any) -> Call:
    return call(data.pictures, name=name, count=count, **settings)


def _table(name: str, **settings: Any) -> Call:
    return call(data.table, name=name, **settings)


_MNIST, _FASHION, _OTHER = "mnist", "fashion_mnist", "notmnist"
_RELU, _GELU, _SILU = {"act": "relu"}, {"act": "gelu"}, {"act": "silu"}

_USED: tuple[tuple[str, Call, Call, Recipe], ...] = (
    ("dig-tanh-interp", _digits(500), _mlp(64, 24, 10), Recipe(4000)),
    ("dig-relu-interp", _digits(300), _mlp(64, 24, 10, **_RELU), Recipe(3000)),
    ("dig-cnn-interp", _digits(500), _cnn(8, 12, 8), Recipe(2500)),
    ("dig-relu-150", _digits(150), _mlp(64, 24, 10, **_RELU), Recipe(8000, 1e-2)),
    ("fash-interp", _pictures(_FASHION, 500), _mlp(196, 10, 10, **_RELU), Recipe(8000)),
    ("dig-tanh-mid", _digits(500), _mlp(64, 24, 10), Recipe(500)),
    ("dig-wd", _digits(500), _mlp(64, 24, 10), Recipe(2500, decay=1e-3)),
    ("dig-noise", _digits(700, noise=0.15), _mlp(64, 30, 10, **_RELU), Recipe(6000)),
    ("dig-noise-wd", _digits(700, noise=0.15), _mlp(64, 24, 10), Recipe(3000, decay=2e-3)),
    ("dig-under", _digits(500), _mlp(64, 24, 10), Recipe(60)),
    ("dig-drop", _digits(500), _mlp(64, 28, 10, drop=0.3, **_RELU), Recipe(3000)),
    ("dig-bn", _digits(500), _cnn(8, 12, 8, norm=True), Recipe(1500)),
    ("mnist-cnn", _pictures(_MNIST, 600), _cnn(8, 12, 14), Recipe(2000)),
    ("fash-cnn", _pictures(_FASHION, 600), _cnn(8, 12, 14), Recipe(3000)),
    ("fash-wd", _pictures(_FASHION, 600), _cnn(8, 12, 14), Recipe(2500, decay=2e-3)),
    ("fash-mid", _pictures(_FASHION, 600), _cnn(8, 12, 14, norm=True), Recipe(250)),
    ("wine-2", _table("wine-red", bins=2), _mlp(11, 40, 40, 2), Recipe(4000)),
    ("conc-5", _table("concrete", bins=5), _mlp(8, 30, 30, 5), Recipe(4000)),
    ("kin8-20", _table("kin8nm", bins=20, count=600), _mlp(8, 30, 20), Recipe(2500)),
    ("energy-4", _table("energy", bins=4), _mlp(8, 24, 24, 4), Recipe(2500)),
    ("bc-2", _table("breast-cancer", bins=0, count=250), _mlp(30, 20, 2), Recipe(2000)),
)

_NEW: tuple[tuple[str, Call, Call, Recipe], ...] = (
    ("digits-400-relu-relu", _digits(400, seed=1), _mlp(64, 24, 24, 10, **_RELU), Recipe(3000)),
    ("digits-400-gelu-sgd", _digits(400, seed=2), _mlp(64, 32, 10, **_GELU), Recipe(3000, 0.03, optimiser="sgd")),
    ("digits-250-tanh-lbfgs", _digits(250, seed=3), _mlp(64, 16, 10), Recipe(200, optimiser="lbfgs")),
    ("digits-250-tanh-decay", _digits(250, seed=3), _mlp(64, 24, 10), Recipe(2500, decay=5e-3)),
    ("digits-600-relu-30%-wrong", _digits(600, seed=4, noise=0.3), _mlp(64, 30, 10, **_RELU), Recipe(4000)),
    ("digits-600-cnn-10%-wrong-decay", _digits(600, seed=5, noise=0.1), _cnn(8, 12, 8), Recipe(2000, decay=1e-3)),
    ("digits-400-attention", _digits(400, seed=6),
     call(networks.Attention, side=8, width=16, outputs=10), Recipe(1500)),
    ("digits-400-attention-dropout", _digits(400, seed=6),
     call(networks.Attention, side=8, width=16, outputs=10, drop=0.2), Recipe(1500)),
    ("digits-400-lstm", _digits(400, seed=7), call(networks.Recurrent, side=8, hidden=12, outputs=10), Recipe(1500)),
    ("digits-400-smoothed-labels", _digits(400, seed=8), _mlp(64, 24, 10, **_SILU), Recipe(2500, smoothing=0.1)),
    ("digits-900-wide", _digits(900, seed=9), _mlp(64, 64, 64, 10, **_RELU), Recipe(2500)),
    ("digits-900-dropout-half", _digits(900, seed=10), _mlp(64, 48, 10, drop=0.5, **_RELU), Recipe(3000)),
    ("digits-80-tanh", _digits(80, seed=11), _mlp(64, 12, 10), Recipe(2000)),
    ("digits-500-cnn-shifted", _digits(500, seed=12), _cnn(8, 12, 8), Recipe(3000, shifted=True)),
    ("digits-400-odd-or-even", _digits(400, seed=13, classes=2), _mlp(64, 20, 2, **_GELU), Recipe(2500)),
    ("mnist-1000-mlp", _pictures(_MNIST, 1000, seed=1), _mlp(196, 16, 10, **_RELU), Recipe(4000)),
    ("mnist-300-cnn-norm", _pictures(_MNIST, 300, seed=2), _cnn(6, 10, 14, norm=True), Recipe(1000)),
    ("mnist-1500-cnn-stopped-early", _pictures(_MNIST, 1500, seed=3), _cnn(6, 10, 14), Recipe(150)),
    ("mnist-500-cnn-decay", _pictures(_MNIST, 500, seed=4), _cnn(6, 10, 14, **_GELU), Recipe(1500, decay=2e-3)),
    ("mnist-400-cnn-dropout", _pictures(_MNIST, 400, seed=5), _cnn(6, 10, 14, drop=0.4), Recipe(1500)),
    ("mnist-400-28-pixels", _pictures(_MNIST, 400, seed=6, side=28), _cnn(4, 6, 28), Recipe(1000)),
    ("fashion-800-cnn-norm", _pictures(_FASHION, 800, seed=1), _cnn(8, 12, 14, norm=True), Recipe(1200)),
    ("fashion-400-gelu-gelu", _pictures(_FASHION, 400, seed=2), _mlp(196, 12, 12, 10, **_GELU), Recipe(4000)),
    ("fashion-1500-stopped-early", _pictures(_FASHION, 1500, seed=3), _mlp(196, 12, 10), Recipe(150)),
    ("fashion-600-20%-wrong", _pictures(_FASHION, 600, seed=4, noise=0.2), _mlp(196, 16, 10, **_RELU), Recipe(5000)),
    ("fashion-800-dropout", _pictures(_FASHION, 800, seed=5), _mlp(196, 20, 10, drop=0.3, **_RELU), Recipe(3000)),
    ("notmnist-500-cnn", _pictures(_OTHER, 500, seed=1), _cnn(6, 10, 14), Recipe(2000)),
    ("notmnist-500-tanh-decay", _pictures(_OTHER, 500, seed=2), _mlp(196, 12, 10), Recipe(2500, decay=3e-3)),
    ("cifar10-800-cnn", call(data.colours, name="cifar10", count=800, seed=1, side=16),
     _cnn(8, 12, 16, colours=3), Recipe(2500)),
    ("cifar10-800-cnn-decay", call(data.colours, name="cifar10", count=800, seed=2, side=16),
     _cnn(8, 12, 16, colours=3), Recipe(1500, decay=4e-3)),
    ("cifar100-1500-cnn-norm", call(data.colours, name="cifar100", count=1500, seed=3, side=8),
     _cnn(8, 16, 8, 100, colours=3, norm=True), Recipe(500)),
    ("naval-10-bins", _table("naval", bins=10, count=700), _mlp(16, 24, 24, 10), Recipe(3000)),
    ("protein-3-bins", _table("protein", bins=3, count=800), _mlp(9, 30, 30, 3, **_RELU), Recipe(3000)),
    ("power-plant-6-bins", _table("power-plant", bins=6, count=600), _mlp(4, 24, 24, 6, **_GELU), Recipe(3000)),
    ("boston-2-bins", _table("boston", bins=2, seed=1), _mlp(13, 24, 2, **_RELU), Recipe(2000)),
    ("wine-3", _table("wine", count=80, seed=1), _mlp(13, 12, 3), Recipe(1500)),
    ("yacht-4-bins", _table("yacht", bins=4, seed=1), _mlp(6, 20, 20, 4), Recipe(2000)),
    ("kin8nm-100-bins", _table("kin8nm", bins=100, count=1200, seed=1), _mlp(8, 20, 100), Recipe(800)),
    ("energy-8-bins-sgd", _table("energy", bins=8, seed=1), _mlp(8, 24, 24, 8, **_RELU),
     Recipe(3000, 0.03, optimiser="sgd")),
)  # fmt: skip

_USED_REGRESSIONS = (
    "reg-diabetes-over", "reg-boston-wd", "reg-concrete-over", "reg-yacht-over", "reg-concrete-under",
)  # fmt: skip
_REGRESSIONS = {"over": Recipe(6000), "mid": Recipe(1000), "under": Recipe(60), "wd": Recipe(3000, decay=3e-3)}
_INPUTS = {"diabetes": 10, "boston": 13, "concrete": 8, "energy": 8, "yacht": 6, "kin8nm": 8, "wine-red": 11,
           "power-plant": 4}  # fmt: skip


def _regression(name: str) -> Case:
    rest, _, how = name.removeprefix("reg-").rpartition("-")
    rows = _table(rest, count=300) if rest == "diabetes" else _table(rest)
    return Case(name, rows, _mlp(_INPUTS[rest], 40, 1), _REGRESSIONS[how], "gaussian", used=True)


_CIFAR = call(data.colours, name="cifar10", count=200, test=300)
CASES: tuple[Case, ...] = (
    *(Case(*one, used=True) for one in _USED),
    Case("bern-wine", _table("wine-red", bins=2, bernoulli=True), _mlp(11, 40, 40, 1), Recipe(4000), "bernoulli",
         used=True),
    *map(_regression, _USED_REGRESSIONS),
    *(Case(*one) for one in _NEW),
    Case("protein-2-bernoulli", _table("protein", bins=2, count=700, seed=2, bernoulli=True),
         _mlp(9, 30, 30, 1, **_GELU), Recipe(3000), "bernoulli"),
    Case("cifar10-resnet20-last-stage", _CIFAR, call(networks.own_resnet), None, parameters="1.layers.8.*"),
    Case("cifar10-published-resnet20-last-layer", _CIFAR, call(networks.published_resnet, depth=20), None,
         parameters="last-layer"),
    Case("naval-regression", _table("naval", count=400, seed=1), _mlp(16, 30, 1, **_RELU), Recipe(3000), "gaussian"),
    Case("protein-regression", _table("protein", count=500, seed=1), _mlp(9, 40, 1, **_GELU), Recipe(3000), "gaussian"),
    Case("kin8nm-regression-dropout", _table("kin8nm", count=500, seed=1), _mlp(8, 40, 40, 1, drop=0.1, **_RELU),
         Recipe(3000), "gaussian"),
    Case("power-plant-regression-decay", _table("power-plant", count=300, seed=1), _mlp(4, 30, 1),
         Recipe(1500, decay=1e-3), "gaussian"),
)  # fmt: skip
BY_NAME = {case.name: case for case in CASES}
