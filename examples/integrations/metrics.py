"""Scores of torchmetrics for predictions with error bars.

pip install sampla torchmetrics

Metrics take probabilities, which are averaged over the posterior; a loader's predictions come a batch at a time.
"""

import torch
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

import sampla

torch.manual_seed(0)
x = torch.randn(300, 2)
y = (x[:, 0] + 0.5 * torch.randn(300) > 0).long() + (x[:, 1] + 0.5 * torch.randn(300) > 0)
net = torch.nn.Sequential(torch.nn.Linear(2, 10), torch.nn.Tanh(), torch.nn.Linear(10, 3))
optimiser = torch.optim.Adam(net.parameters(), lr=0.05)
for _ in range(500):
    optimiser.zero_grad()
    torch.nn.functional.cross_entropy(net(x[:100]), y[:100]).backward()
    optimiser.step()
la = sampla.LinearisedLaplace(net.eval(), "categorical", progress=False).fit([(x[:100], y[:100])])
test = DataLoader(TensorDataset(x[100:], y[100:]), batch_size=50)

metrics = MetricCollection([MulticlassAccuracy(3), MulticlassCalibrationError(3, n_bins=10)])
for pred in la.predict_batches(test):
    metrics.update(pred.probs, pred.targets)
print("with error bars:", {name: round(float(value), 3) for name, value in metrics.compute().items()})

metrics.reset()
for inputs, targets in test:
    metrics.update(net(inputs).softmax(1), targets)
print("network alone:  ", {name: round(float(value), 3) for name, value in metrics.compute().items()})
