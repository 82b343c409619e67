"""Error bars for a network that skorch trained, scikit-learn's way.

pip install sampla skorch

NeuralNetClassifier expects probabilities where its criterion is the default, NLLLoss; sampla expects logits, so train
with CrossEntropyLoss.
"""

import numpy as np
import torch
from sklearn.datasets import make_moons
from skorch import NeuralNetClassifier

import sampla

x, y = make_moons(160, noise=0.2, random_state=0)
x = x.astype(np.float32)

torch.manual_seed(0)
module = torch.nn.Sequential(torch.nn.Linear(2, 12), torch.nn.Tanh(), torch.nn.Linear(12, 2))
net = NeuralNetClassifier(
    module, criterion=torch.nn.CrossEntropyLoss, optimizer=torch.optim.Adam, lr=0.05, max_epochs=20, batch_size=32,
    train_split=None, verbose=0,
)  # fmt: skip
net.fit(x[:120], y[:120])

loader = net.get_iterator(net.get_dataset(x[:120], y[:120]))
la = sampla.LinearisedLaplace(net.module_.eval(), "categorical", num_samples=8, progress=False).fit(loader)
pred = la.predict(x[120:])  # arrays will do

print(f"held out: accuracy {net.score(x[120:], y[120:]):.2f}", end="")
print(f", log score {pred.log_prob(y[120:]).mean():.3f} nats")
print("probabilities far away:", la.predict(np.array([[9.0, 9.0]], dtype=np.float32)).probs.tolist())
