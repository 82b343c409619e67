"""Standard deviations for every pixel of an image-to-image network, here one that takes the noise out of pictures.

`python image_to_image.py` takes some seconds at 12 x 12 pixels; `--full` has 1 x 64 x 64 outputs per picture.
Writes image_to_image.png.
"""

import argparse

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import nn

import sampla

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--full", action="store_true", help="64 x 64 pixels and 16 pictures instead of 12 x 12 and 24")
full = parser.parse_args().full
size, count, width, steps = (64, 16, 8, 200) if full else (12, 24, 8, 100)


def discs(number: int, pixels: int) -> torch.Tensor:
    """(number, 1, pixels, pixels): three discs of random place, size and brightness."""
    grid = torch.linspace(-1, 1, pixels)
    centre, radius, brightness = (
        torch.rand(number, 3, 2, 1, 1) * 2 - 1,
        torch.rand(number, 3, 1, 1),
        torch.rand(number, 3),
    )
    distance = ((grid[:, None] - centre[:, :, 0]) ** 2 + (grid - centre[:, :, 1]) ** 2).sqrt()
    return torch.einsum("nd,ndhw->nhw", brightness, (distance < 0.2 + radius / 2).float())[:, None]


torch.manual_seed(0)
clean = discs(count + 8, size)
noisy = clean + 0.3 * torch.randn_like(clean)

net = nn.Sequential(
    nn.Conv2d(1, width, 3, padding=1),
    nn.GELU(),
    nn.Conv2d(width, width, 3, padding=2, dilation=2),
    nn.GELU(),
    nn.Conv2d(width, 1, 3, padding=1),
)
optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
for _ in range(steps):
    chosen = torch.randperm(count)[:16]
    optimiser.zero_grad()
    nn.functional.mse_loss(net(noisy[chosen]), clean[chosen]).backward()
    optimiser.step()

data = torch.utils.data.TensorDataset(noisy[:count], clean[:count])
loader = torch.utils.data.DataLoader(data, batch_size=16)
la = sampla.LinearisedLaplace(net.eval(), likelihood="gaussian", num_samples=16).fit(loader)
print(la.report_)

pred = la.predict(noisy[count:])
total = (pred.variance + 1 / la.noise_precision_).sqrt()  # of a new pixel: the function's and the noise
error = (pred.mean - clean[count:]).abs()
print(f"outputs per picture {pred.mean[0].numel()}, pixels within 2 std {(error < 2 * total).float().mean():.1%}")

columns = {"given": noisy[count:], "clean": clean[count:], "network": pred.mean, "std of the function": pred.std}
figure, axes = plt.subplots(3, 4, figsize=(8, 6), layout="constrained")
for column, (title, images) in enumerate(columns.items()):
    axes[0, column].set_title(title)
    for row in range(3):
        axes[row, column].imshow(images[row, 0].numpy(), cmap="magma" if column == 3 else "gray")
        axes[row, column].axis("off")
figure.savefig("image_to_image.png", dpi=120)
plt.close(figure)
