"""The two ways to a reconstruction with error bars, and what the summary says of each."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Literal
from warnings import catch_warnings, filterwarnings

from torch import Tensor

from sampla.tomography import LinearisedDIP, Operator, Recipe, VariationalTV

Method = Literal["network", "variational"]
Fit = LinearisedDIP | VariationalTV


def fitted(
    method: Method, operator: Operator, measurements: Tensor, noise_std: Tensor | None, *, num_samples: int | None,
    seed: int, steps: int | None, quiet: bool, checkpoint: Any, say: Callable[[str], None],
) -> Fit:  # fmt: skip
    """A fit with noise learnt, or learnt up to the deviations that are given; what it took is said.

    Args:
        method: "network" for the linearised deep image prior, "variational" for total variation as the prior.
        operator: T, of the measurements that count.
        measurements: (A, D) or (m,).
        noise_std: of each of them, up to a factor; None: one for all.
        num_samples: K; None: the method's own default.
        seed: of network and noise.
        steps: of the network's training instead of the recipe's.
        quiet: no bars.
        checkpoint: folder of a fit to go on from.
        say: called with each line for the console.
    """
    common: dict[str, Any] = {"learn_noise": True, "seed": seed, "progress": not quiet}
    common |= {} if num_samples is None else {"num_samples": num_samples}
    if method == "variational":
        with catch_warnings():
            filterwarnings("ignore", "The image misses the measurements")  # run.py says it of either method
            variational = VariationalTV(operator, noise_std, **common)
            say(str(variational.plan()))
            variational.fit(measurements, checkpoint)
        say(f"weights of total variation {weights(variational)}\n{variational.report_}")
        return variational
    recipe = Recipe() if steps is None else Recipe(steps=steps, start_steps=steps)
    dip = LinearisedDIP(operator, noise_std, recipe=recipe, **common).fit(measurements, checkpoint=checkpoint)
    taken = dip.training_.start_steps + dip.training_.steps
    say(f"trained {taken} steps in {dip.training_.seconds:.0f} s\n{dip.report_}\n{dip.plan_}")
    return dip


def weights(fit: VariationalTV) -> str:
    """How the weights came out, in a few words."""
    return f"{'settled' if fit.settled_ else 'did NOT settle'} in {len(fit.steps_)} steps"


def misfit(fit: Fit) -> float:
    """By how much the reconstruction misses the measurements, in units of the noise seen in them."""
    return fit.misfit_ if isinstance(fit, VariationalTV) else fit.training_.final_misfit


def facts(fit: Fit) -> dict[str, Any]:
    """What summary.json says of the way to the fit."""
    if isinstance(fit, VariationalTV):
        strengths = {"strength": fit.strength_, "spread_strength": fit.spread_strength_}
        return {"weights": weights(fit), **strengths, "plan": str(fit.plan())}
    training = {k: v for k, v in asdict(fit.training_).items() if k != "misfits"}
    steps = {"steps": fit.training_.steps, "last_misfit": fit.training_.misfits[-1]}
    return {"training": training | steps, "plan": str(fit.plan_)}
