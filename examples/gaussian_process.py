"""A Gaussian process from random Fourier features, with whole functions as samples. Writes gaussian_process.png.

RBFSampler's features are draws of the RBF kernel's spectrum (Rahimi and Recht 2007): Bayesian linear regression on them
is that Gaussian process, up to the number of features. A draw of coefficients is a function that can be kept and
evaluated anywhere, as often as one likes (pathwise sampling, Wilson et al. 2020).
"""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from sklearn.kernel_approximation import RBFSampler
from sklearn.pipeline import make_pipeline

import sampla

rng = np.random.default_rng(0)
x = np.concatenate([rng.uniform(-3, -0.5, 60), rng.uniform(1, 3, 60)])[:, None]  # nothing between -0.5 and 1
y = np.sin(2 * x[:, 0]) + 0.3 * x[:, 0] + 0.15 * rng.standard_normal(len(x))

features = RBFSampler(gamma=0.5, n_components=500, random_state=0)
process = make_pipeline(features, sampla.BayesianLinearRegression(random_state=0)).fit(x, y)
regression = process[-1]
print(regression.report_)
print(f"noise std {regression.noise_precision_**-0.5:.3f} (true 0.15)")

grid = np.linspace(-4, 4, 300)[:, None]
mean, std = process.predict(grid, return_std=True)
coefficients, intercepts = regression.sample_coef(5, random_state=1)
functions = features.transform(grid) @ coefficients.T + intercepts  # (300, 5)

figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
axes.fill_between(grid[:, 0], mean - 2 * std, mean + 2 * std, alpha=0.2, label="± 2 std of a new target")
axes.plot(grid[:, 0], functions, linewidth=0.8, color="0.5")
axes.plot(grid[:, 0], mean, label="mean")
axes.scatter(x, y, s=10, color="0.2", label="data")
axes.legend(frameon=False)
figure.savefig("gaussian_process.png", dpi=120)
plt.close(figure)
