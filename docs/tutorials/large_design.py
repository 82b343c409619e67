# %% [markdown]
# # A large design: rows from a file, products alone
#
# `BayesianLinearRegression` takes a design that need not fit into memory. Here it would, so that the answers can be
# checked.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import sampla

rng = np.random.default_rng(0)
N, D = 6000, 400
folder = tempfile.TemporaryDirectory()
X = np.memmap(Path(folder.name) / "design.dat", dtype=np.float32, mode="w+", shape=(N, D))
X[:] = rng.standard_normal((N, D), dtype=np.float32) / np.arange(1, D + 1) ** 0.5  # columns that matter less and less
X.flush()
truth = rng.standard_normal(D)
y = X @ truth + 0.5 * rng.standard_normal(N)

# %% [markdown]
# ## Exactly, and by samples
#
# While the smaller side of X is a few thousand, all is in closed form; beyond, products alone. `solver=` makes us see
# both on the same data.

# %%
exact = sampla.BayesianLinearRegression(solver="exact").fit(X, y)
sampled = sampla.BayesianLinearRegression(solver="block-cg", num_samples=64, random_state=0).fit(X, y)
print(exact.report_)
print()
print(sampled.report_)

# %%
new = rng.standard_normal((300, D)) / np.arange(1, D + 1) ** 0.5 * rng.uniform(0, 6, (300, 1))  # some far out
mean, std = exact.predict(new, return_std=True)
mean_cg, std_cg = sampled.predict(new, return_std=True)
figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
for panel, a, b, name in ((axes[0], mean, mean_cg, "mean"), (axes[1], std, std_cg, "std of a new target")):
    panel.axline((a.mean(), a.mean()), slope=1, color="0.7")
    panel.scatter(a, b, s=6)
    panel.set(xlabel=f"{name}, exact", ylabel=f"{name}, 64 samples")

# %% [markdown]
# K samples know a standard deviation to 1 / sqrt(2 K), 9 % here; most of that of a new target is noise, which is
# known well.
#
# ## Functions of the posterior
#
# `sample_coef` gives coefficients that can be kept; each set is one function.

# %%
coefficients, intercepts = exact.sample_coef(200, random_state=0)  # (200, D), (200,)
columns = np.arange(1, D + 1)
figure, axes = plt.subplots(figsize=(9, 3), layout="constrained")
axes.semilogx(columns, np.abs(coefficients.mean(0) - truth), ".", label="|mean - truth|")
axes.semilogx(columns, coefficients.std(0), label="standard deviation")
axes.set(xlabel="column", ylabel="coefficient")
axes.legend(frameon=False)

# %%
covered = np.abs(coefficients.mean(0) - truth) < 2 * coefficients.std(0)
folder.cleanup()
f"{covered.mean():.1%} of the true coefficients within two standard deviations"

# %% [markdown]
# More: [linear models](../linear-models.md), and what it costs with up to 100,000 columns,
# [measured](../../benchmarks/linear_models.md).
