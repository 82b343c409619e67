# %% [markdown]
# # Tomography: an image from few views, with error bars
#
# A phantom of 40 x 40 pixels is seen from 20 angles, with noise. Total variation as the prior reconstructs it, and
# tells for each pixel how uncertain it is. It needs `pip install 'sampla[tomography]'`.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

from sampla.tomography import Geometry, VariationalTV, ray_transform

side = 40
places = torch.linspace(-1, 1, side)
rows, columns = torch.meshgrid(places, places, indexing="ij")
image = ((rows / 0.8) ** 2 + (columns / 0.65) ** 2 < 1).double()
image += 0.6 * (((rows - 0.2) ** 2 + (columns + 0.2) ** 2) < 0.05)
image -= 0.5 * (((rows + 0.3) ** 2 + (columns - 0.15) ** 2) < 0.03)
image = image.float()

angles = tuple(np.linspace(0, np.pi, 20, endpoint=False))
scan = Geometry((side, side), pixel=1.0, angles=angles, num_bins=57, bin_width=1.0)
operator = ray_transform(scan)
clean = operator.forward(image[None])[0].view(20, 57)
sinogram = clean + 0.6 * torch.randn(20, 57, generator=torch.Generator().manual_seed(0))

# %%
variational = VariationalTV(operator, noise_std=0.6, num_samples=16, progress=False).fit(sinogram)
print(variational.report_)
pred = variational.posterior_.predict_image()

# %%
figure, axes = plt.subplots(2, 3, figsize=(9, 6), layout="constrained")
error = (pred.mean - image).abs()
shown = {"truth": image, "mean": pred.mean, "a sample": pred.samples[0], "|mean - truth|": error, "std": pred.std}
for panel, (name, values) in zip(axes.flat, shown.items(), strict=False):
    small = name in ("|mean - truth|", "std")
    panel.imshow(values, cmap="magma" if small else "gray", vmin=0, vmax=float(error.max()) if small else 1.6)
    panel.set(title=name, xticks=[], yticks=[])
z = ((image - pred.mean) / pred.std).flatten()
axes[1, 2].hist(z.clamp(-5, 5), bins=40, density=True)
axes[1, 2].set_title("(truth - mean) / std")

# %%
", ".join(f"within {k} std: {(z.abs() < k).float().mean():.1%}" for k in (1, 2, 3))

# %% [markdown]
# Uncertainty is largest at edges, whose place few views leave open. Samples are joint: the mean over a region has the
# deviation that its pixels have together, which is not that of independent ones.

# %%
inside = ((rows - 0.2) ** 2 + (columns + 0.2) ** 2) < 0.02  # of the bright disc, away from its edge
regions = pred.samples[:, inside].mean(1)
alone = pred.std[inside].square().sum().sqrt() / inside.sum()
print(f"mean of the bright disc: {regions.mean():.3f} +- {regions.std():.3f}; truth {image.max():.3f}")
print(f"were its pixels independent: +- {alone:.3f}")

# %% [markdown]
# The deep image prior instead, other geometries, masks, counts and saving: [how to](../how-to/tomography.md).
# Measured on real scans: [results](../results.md#tomography).
