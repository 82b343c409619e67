# %% [markdown]
# # Regression: a curve with a gap
#
# Noise and prior are learnt from the data; error bars of the function widen where nothing was seen.

# %%
import matplotlib.pyplot as plt
import torch

import sampla

torch.manual_seed(0)
x = torch.cat([torch.rand(60, 1) * 0.8 - 1.0, torch.rand(60, 1) * 0.8 + 0.2])  # nothing between -0.2 and 0.2
y = torch.sin(4 * x) + 0.1 * torch.randn_like(x)

net = torch.nn.Sequential(torch.nn.Linear(1, 24), torch.nn.Tanh(), torch.nn.Linear(24, 1))
optimiser = torch.optim.Adam(net.parameters(), lr=0.02)
for _ in range(500):
    optimiser.zero_grad()
    torch.nn.functional.mse_loss(net(x), y).backward()
    optimiser.step()
net.eval()

la = sampla.LinearisedLaplace(net, likelihood="gaussian", num_samples=64, progress=False).fit([(x, y)])
print(la.report_)

# %% [markdown]
# ## Function and new targets
#
# `std` is how uncertain the function is, `std_total` how far a new target may lie, with the noise that was learnt.

# %%
f"noise: {la.noise_precision_.item() ** -0.5:.3f}; the data were made with 0.100"

# %%
grid = torch.linspace(-1.4, 1.4, 200)[:, None]
pred = la.predict(grid)
mean, std, total = (t[:, 0] for t in (pred.mean, pred.std, pred.std_total))
figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
axes.fill_between(
    grid[:, 0], mean - 2 * total, mean + 2 * total, alpha=0.15, color="C0", label="± 2 std of a new target"
)
axes.fill_between(grid[:, 0], mean - 2 * std, mean + 2 * std, alpha=0.3, color="C0", label="± 2 std of the function")
axes.plot(grid[:, 0], pred.samples[:4, :, 0].T, linewidth=0.8, color="0.5")
axes.plot(grid[:, 0], mean, label="the network")
axes.scatter(x, y, s=8, color="0.2", label="data")
axes.set_ylim(-3, 3)
axes.legend(frameon=False, ncols=2)

# %% [markdown]
# The thin lines are four of the K samples: each is one function, the same at all inputs.
#
# ## Are they right where they can be checked?

# %%
x_new = torch.cat([torch.rand(500, 1) * 0.8 - 1.0, torch.rand(500, 1) * 0.8 + 0.2])
y_new = torch.sin(4 * x_new) + 0.1 * torch.randn_like(x_new)
low, high = la.predict(x_new).quantile([0.05, 0.95], total=True)
f"{((y_new > low) & (y_new < high)).float().mean():.1%} of new targets between the 5 % and the 95 % quantile"

# %% [markdown]
# ## Another prior
#
# The evidence compares priors of one network, for the same data.

# %%
for prior in ("g-prior", "isotropic", "layerwise"):
    other = sampla.LinearisedLaplace(net, "gaussian", prior, log_evidence=True, solver="dense", progress=False)
    other.fit([(x, y)])
    print(f"{prior:10} log p(y) = {other.log_evidence_:.1f}")

# %% [markdown]
# More: [prior, width, evidence](../how-to/priors.md), [likelihoods](../how-to/likelihoods.md).
