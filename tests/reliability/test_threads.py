"""Several threads ask one posterior, or fit, at the same time: each gets what it would get alone."""

import threading
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import nn

import sampla
from helpers import assert_unchanged, snapshot

X = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40) % 3


def network() -> nn.Module:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3)).eval()
    model[0].register_full_backward_hook(lambda *_: None)
    return model


def posterior(model: nn.Module, prior: str = "g-prior") -> sampla.LinearisedLaplace:
    return sampla.LinearisedLaplace(model, prior=prior, num_samples=8, progress=False)


def together(*tasks: Callable[[], None]) -> None:
    """Each task on a thread of its own; the first thing that goes wrong on any is raised."""
    wrong: list[BaseException] = []

    def guarded(task: Callable[[], None]) -> None:
        try:
            task()
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=guarded, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if wrong:
        raise wrong[0]


def test_predictions_on_four_threads_are_right() -> None:
    model = network()
    la, before, found = posterior(model).fit([(X, Y)]), snapshot(model), Counter[bool]()
    expected = la.predict(X).std

    def ask() -> None:
        for _ in range(50):
            found[torch.equal(la.predict(X).std, expected)] += 1

    together(*[ask] * 4)
    assert found == {True: 200}
    assert_unchanged(model, before)


@pytest.mark.parametrize("shared", [True, False])
def test_fits_beside_predictions_are_right(shared: bool) -> None:
    model = network()
    before = snapshot(model)
    la = posterior(model).fit([(X, Y)])
    expected, alone = la.predict(X).std, posterior(network(), "isotropic").fit([(X, Y)]).samples_
    results: list[sampla.LinearisedLaplace] = []
    # Drawn here: two threads that draw their weights at once share torch's one generator.
    others = [model, model] if shared else [network(), network()]

    def fit() -> None:
        results.append(posterior(others.pop(), "isotropic").fit([(X, Y)]))

    def ask() -> None:
        for _ in range(40):
            assert torch.equal(la.predict(X).std, expected)

    together(fit, ask, fit)
    assert len(results) == 2
    for result in results:
        for name, samples in result.samples_.items():
            assert torch.equal(samples, alone[name])
    assert_unchanged(model, before)
