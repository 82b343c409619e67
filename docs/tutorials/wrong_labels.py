# %% [markdown]
# # Finding wrong labels
#
# Some labels of a training set are wrong. Which? A label that is unlikely when its datum is left out is the first to
# look at; `la.leave_one_out` tells it without fitting again.

# %%
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score

import sampla

generator = torch.Generator().manual_seed(0)
torch.manual_seed(0)
images, digits = load_digits(return_X_y=True)
chosen = torch.randperm(len(images), generator=generator)[:400]
x, truth = torch.tensor(images / 16).float()[chosen], torch.tensor(digits)[chosen]
wrong = torch.rand(400, generator=generator) < 0.1
labels = torch.where(wrong, (truth + torch.randint(1, 10, (400,), generator=generator)) % 10, truth)


def trained(passes):
    net = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10))
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(passes):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(net(x), labels).backward()
        optimiser.step()
    return net.eval()


f"{wrong.sum()} of 400 labels are wrong"

# %% [markdown]
# ## A network that has memorised them
#
# After 300 passes the network reproduces every label, the wrong ones too: its own loss says little about them. With
# the curvature at the mode of the linear model, leave-one-out says more.

# %%
memorised = trained(300)
la = sampla.LinearisedLaplace(memorised, curvature_at="linear-mode", num_samples=16, progress=False).fit([(x, labels)])
loo = la.leave_one_out([(x, labels)])
print(loo)
loss = torch.nn.functional.cross_entropy(memorised(x), labels, reduction="none").detach()
print(f"labels reproduced: {(memorised(x).argmax(1) == labels).float().mean():.1%}")
print(f"average precision, network's loss: {average_precision_score(wrong, loss):.2f}")
print(f"average precision, leave-one-out:  {average_precision_score(wrong, -loo.log_prob):.2f}")

# %%
figure, axes = plt.subplots(2, 8, figsize=(9, 3), layout="constrained")
for panel, n in zip(axes.flat, loo.least_likely(16), strict=True):
    panel.imshow(x[n].view(8, 8), cmap="gray_r")
    panel.set_title(f"labelled {labels[n]}", color="C3" if wrong[n] else "k", fontsize=9)
    panel.set(xticks=[], yticks=[])

# %% [markdown]
# Red: labels that were made wrong. In black are those of the data as they came; some digits are hard to read.
#
# ## A network that was stopped early
#
# It has not memorised anything, and its own loss tells wrong labels as well as anything does. Look at that first.

# %%
early = trained(30)
loss = torch.nn.functional.cross_entropy(early(x), labels, reduction="none").detach()
la = sampla.LinearisedLaplace(early, num_samples=16, progress=False).fit([(x, labels)])
loo = la.leave_one_out([(x, labels)])
print(f"average precision, network's loss: {average_precision_score(wrong, loss):.2f}")
print(f"average precision, leave-one-out:  {average_precision_score(wrong, -loo.log_prob):.2f}")

# %% [markdown]
# The whole study, over shares, seeds and sizes: [mislabelled.py](../../examples/mislabelled.py). Which data a
# prediction rests on: [influence](../how-to/predictions.md#which-training-data-a-prediction-rests-on).
