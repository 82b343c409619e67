# %% [markdown]
# # Classification: digits, right side up and not
#
# A small network is trained on scikit-learn's digits. It is right on more than nine of ten; of images that are turned
# it knows nothing. We give it error bars, and look at what they tell and what they do not.

# %%
import matplotlib.pyplot as plt
import torch
from scipy.ndimage import rotate
from sklearn.datasets import load_digits

import sampla

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images / 16).float(), torch.tensor(labels)
x_train, y_train, x_test, y_test = x[:1000], y[:1000], x[1000:], y[1000:]

model = torch.nn.Sequential(torch.nn.Linear(64, 24), torch.nn.ReLU(), torch.nn.Linear(24, 10))
optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
for _ in range(120):
    optimiser.zero_grad()
    torch.nn.functional.cross_entropy(model(x_train), y_train).backward()
    optimiser.step()
model.eval()
f"{(model(x_test).argmax(1) == y_test).float().mean():.1%} of {len(x_test)} test images are classified rightly"

# %% [markdown]
# ## The fit
#
# It needs the network and the data it was trained on, nothing else. The report says what was found, how exactly, and
# at what cost.

# %%
data = torch.utils.data.TensorDataset(x_train, y_train)
loader = torch.utils.data.DataLoader(data, batch_size=250)
la = sampla.LinearisedLaplace(model, likelihood="categorical", num_samples=16, progress=False).fit(loader)
print(la.report_)

# %% [markdown]
# The line *width* matters most for what follows: leave-one-out on the training data has chosen by how much the
# posterior's deviations are multiplied, once for probabilities and once for joint predictions
# ([why](../how-to/priors.md#how-wide-error-bars-are-and-who-decides)).
#
# ## Images that it is least sure of

# %%
pred = la.predict(x_test)
wrong = pred.probs.argmax(1) != y_test
order = pred.entropy.argsort(descending=True)
figure, axes = plt.subplots(2, 8, figsize=(9, 3), layout="constrained")
for panels, chosen, name in ((axes[0], order[:8], "least sure"), (axes[1], order[-8:], "most sure")):
    for panel, n in zip(panels, chosen, strict=True):
        panel.imshow(x_test[n].view(8, 8), cmap="gray_r")
        probs, colour = pred.probs[n], "C3" if wrong[n] else "k"
        panel.set_title(f"{probs.argmax()}: {probs.max():.0%}", color=colour, fontsize=9)
        panel.set(xticks=[], yticks=[])
    panels[0].set_ylabel(name)

# %%
first = order[: len(order) // 10]
f"{wrong[first].sum()} of {wrong.sum()} mistakes are among the tenth of images with the largest entropy"

# %% [markdown]
# ## Images that are turned
#
# Nothing in the training data tells what a turned image is. Mutual information is the part of the uncertainty that is
# about the network's weights, from the joint functions; it grows as images turn away from the training data.

# %%
angles = range(0, 181, 15)
upright = x_test.view(-1, 8, 8).numpy()
turned = [torch.tensor(rotate(upright, angle, (1, 2), reshape=False, order=1)).view(-1, 64) for angle in angles]
predictions = [la.predict(part) for part in turned]
figure, axes = plt.subplots(1, 3, figsize=(11, 3), layout="constrained")
axes[0].plot(angles, [(p.probs.argmax(1) == y_test).float().mean() for p in predictions])
axes[0].set(xlabel="degrees", ylabel="accuracy", ylim=(0, 1))
axes[1].plot(angles, [p.mutual_information.mean() for p in predictions], color="C1")
axes[1].set(xlabel="degrees", ylabel="mutual information, nats")
group = torch.arange(len(x_test)) // 10
alone = [torch.nn.functional.cross_entropy(model(part), y_test, reduction="none").detach() for part in turned]
axes[2].plot(angles, [10 * a.mean() for a in alone], color="0.5", label="network alone")
axes[2].plot(angles, [-p.joint_log_prob(y_test, group).mean() for p in predictions], label="sampla")
axes[2].set(xlabel="degrees", ylabel="-log p of ten labels jointly, nats")
axes[2].legend(frameon=False)

# %% [markdown]
# Ten labels together are far likelier under functions that may all be wrong in the same way than under one network.
# The probability of a single label is another matter: where leave-one-out gave probabilities no width, they stay the
# network's ([scores](../notes/scores.md)).
