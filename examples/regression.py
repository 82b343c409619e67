"""A curve with a gap in its data: error bars that widen where nothing was seen. Writes regression.png."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

import sampla

torch.manual_seed(0)
x = torch.cat([torch.rand(40, 1) * 0.8 - 1.0, torch.rand(40, 1) * 0.8 + 0.2])  # nothing between -0.2 and 0.2
y = torch.sin(4 * x) + 0.1 * torch.randn_like(x)

net = torch.nn.Sequential(torch.nn.Linear(1, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
optimiser = torch.optim.Adam(net.parameters(), lr=0.02)
for _ in range(500):
    optimiser.zero_grad()
    torch.nn.functional.mse_loss(net(x), y).backward()
    optimiser.step()

la = sampla.LinearisedLaplace(net.eval(), likelihood="gaussian", num_samples=32).fit([(x, y)])
print(la.report_)

grid = torch.linspace(-1.3, 1.3, 200)[:, None]
pred = la.predict(grid)
mean, std = pred.mean[:, 0], pred.std[:, 0]
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
axes.fill_between(grid[:, 0], mean - 2 * std, mean + 2 * std, alpha=0.25, label="± 2 std of the function")
axes.plot(grid[:, 0], pred.samples[:3, :, 0].T, linewidth=0.8, color="0.5")
axes.plot(grid[:, 0], mean, label="the network")
axes.scatter(x, y, s=10, color="0.2", label="data")
axes.legend(frameon=False)
figure.savefig("regression.png", dpi=120)
plt.close(figure)
