"""Error bars for a classifier with thousands of classes: nothing of size C x C, nothing of size N x C x K.

`python many_classes.py` takes 31 classes and some seconds; `--full` 3,100. Prints the scores of the network alone and
with error bars, whichever way they come out, on new data and on data of classes that it has never seen.
"""

import argparse

import torch
from torch import nn

import sampla

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--full", action="store_true", help="3,100 classes instead of 31")
classes, each, inputs, hidden = (3_100, 2, 32, 32) if parser.parse_args().full else (31, 6, 8, 24)

torch.manual_seed(0)
centres = torch.randn(2 * classes, inputs)  # the second half are classes that nobody has seen


def drawn(first: int, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Data of all classes from the first, so many of each."""
    labels = torch.arange(first, first + classes).repeat(number)
    return centres[labels] + 0.5 * torch.randn(len(labels), inputs), labels


x, y = drawn(0, each)
net = nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, classes))
optimiser = torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.01)
for _ in range(20):
    for chosen in torch.randperm(len(x)).split(512):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x[chosen]), y[chosen]).backward()
        optimiser.step()

loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=256)
la = sampla.LinearisedLaplace(net.eval(), num_samples=8).fit(loader)
print(la.report_)

(new, labels), (unseen, _) = drawn(0, 1), drawn(classes, 1)
few = torch.randperm(classes)[:500]
pred, other = la.predict(new[few], method="probit"), la.predict(unseen[few], method="probit")
alone = nn.functional.log_softmax(net(new[few]).detach(), 1)
right = labels[few, None]
print(f"classes {classes}, accuracy {(pred.mean.argmax(1) == right[:, 0]).float().mean():.1%}")
print(f"mean log probability of the class: network {alone.gather(1, right).mean():.3f}, ", end="")
print(f"with error bars {pred.probs.log().gather(1, right).mean():.3f}")
print(f"largest probability on unseen classes: network {other.mean.softmax(1).amax(1).mean():.3f}, ", end="")
print(f"with error bars {other.probs.amax(1).mean():.3f}")
