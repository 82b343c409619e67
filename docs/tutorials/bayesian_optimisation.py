# %% [markdown]
# # Bayesian optimisation: ask where a drawn function is largest
#
# Thompson sampling with a network: fit it to what is known, draw a function of its posterior, ask for the value where
# that is largest. `la.functions` gives functions that are the same at every call.

# %%
import matplotlib.pyplot as plt
import torch

import sampla

torch.manual_seed(0)
grid = torch.linspace(-1, 1, 300)[:, None]


def objective(x):
    """What is to be maximised; every question about it is dear."""
    return torch.sin(5 * x) * (1 - x.square()) + 0.8 * torch.exp(-40 * (x + 0.65).square())


def trained(x, y):
    net = torch.nn.Sequential(torch.nn.Linear(1, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    torch.nn.init.normal_(net[0].weight, std=4.0)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(300):
        optimiser.zero_grad()
        torch.nn.functional.mse_loss(net(x), y).backward()
        optimiser.step()
    return net.eval()


# %% [markdown]
# With few data the noise cannot be learnt, so it is given, and so is the prior.

# %%
ROUNDS, EACH = 6, 2
noise, prior = sampla.Gaussian(noise_precision=400.0), sampla.Isotropic(1.0, learn=False)
x = torch.tensor([[-0.2], [0.1], [0.8]])
y = objective(x)
figure, axes = plt.subplots(2, 3, figsize=(11, 5), sharex=True, sharey=True, layout="constrained")
for turn, panel in enumerate(axes.flat):
    la = sampla.LinearisedLaplace(trained(x, y), noise, prior, num_samples=16, seed=turn, width="em", progress=False)
    la.fit([(x, y)])
    drawn = la.functions(EACH)(grid)[..., 0]  # (EACH, 300)
    ask = grid[drawn.argmax(1)]
    pred = la.predict(grid)
    mean, std = pred.mean[:, 0], pred.std[:, 0]
    panel.fill_between(grid[:, 0], mean - 2 * std, mean + 2 * std, alpha=0.2)
    panel.plot(grid[:, 0], objective(grid), color="0.6", linestyle="--")
    panel.plot(grid[:, 0], drawn.T, linewidth=0.8, color="C1")
    panel.scatter(x, y, s=12, color="0.2")
    panel.set(title=f"round {turn + 1}", ylim=(-2.5, 3))
    x, y = torch.cat([x, ask]), torch.cat([y, objective(ask)])

# %% [markdown]
# Dashed: what nobody knows. Dots: what was asked. Orange: the functions drawn, whose largest values are asked for
# next.

# %%
best = objective(grid).max()
lucky = torch.stack([objective(grid[torch.randint(300, (len(x),))]).max() for _ in range(500)])
f"largest value {best:.3f}; found with {len(x)} questions {y.max():.3f}, at random {lucky.mean():.3f} on average"

# %% [markdown]
# With a linear model on random features: [thompson_sampling.py](../../examples/thompson_sampling.py). Gradients of
# acquisition functions: [derivatives by x](../how-to/predictions.md#derivatives-by-x-functions-to-be-maximised).
