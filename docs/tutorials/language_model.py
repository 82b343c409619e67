# %% [markdown]
# # A language model's adapters
#
# A tiny transformer is trained to continue sequences of letters, then adapted to another kind of sequence by low-rank
# adapters (LoRA) while its own weights stay frozen. The posterior is over the adapters alone: they are what requires
# gradients. Nothing is downloaded; with models of a library it is the same ([integrations](../integrations.md)).

# %%
import matplotlib.pyplot as plt
import torch
from torch import nn

import sampla

LETTERS, LENGTH, WIDTH = 12, 10, 32
torch.manual_seed(0)


class Language(nn.Module):
    """(n, length) tokens -> (n, length, letters) logits of the next one."""

    def __init__(self):
        super().__init__()
        self.token, self.place = nn.Embedding(LETTERS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.query, self.value = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.key, self.mix = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.inner = nn.Sequential(nn.Linear(WIDTH, 64), nn.GELU(), nn.Linear(64, WIDTH))
        self.head = nn.Linear(WIDTH, LETTERS)

    def forward(self, tokens):
        length = tokens.shape[1]
        h = self.token(tokens) + self.place.weight[:length]
        later = torch.ones(length, length, dtype=torch.bool, device=tokens.device).triu(1)
        scores = (self.query(h) @ self.key(h).mT / WIDTH**0.5).masked_fill(later, -1e9)
        h = h + self.mix(scores.softmax(-1) @ self.value(h))
        return self.head(h + self.inner(h))


class LoRA(nn.Module):
    """A frozen linear layer, and a low-rank change of it."""

    def __init__(self, frozen, rank=2):
        super().__init__()
        self.frozen = frozen
        self.down = nn.Parameter(0.2 * torch.randn(rank, frozen.in_features))
        self.up = nn.Parameter(torch.zeros(frozen.out_features, rank))

    def forward(self, x):
        return self.frozen(x) + x @ self.down.mT @ self.up.mT


def sequences(n, step, generator):
    """Letters that go up by a step, round and round; one in twelve is replaced by another."""
    start = torch.randint(LETTERS, (n, 1), generator=generator)
    tokens = (start + step * torch.arange(LENGTH + 1)) % LETTERS
    noise = torch.rand(tokens.shape, generator=generator) < 1 / 12
    return torch.where(noise, torch.randint(LETTERS, tokens.shape, generator=generator), tokens)


def train(model, data, steps, rate):
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=rate)
    for _ in range(steps):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(model(data[:, :-1]).flatten(0, 1), data[:, 1:].flatten())
        loss.backward()
        optimiser.step()
    return loss.item()


generator = torch.Generator().manual_seed(0)
model = Language()
print(f"loss after training on steps of one: {train(model, sequences(128, 1, generator), 150, 1e-2):.2f}")
model.requires_grad_(False)
model.query, model.value = LoRA(model.query), LoRA(model.value)
model.inner[0], model.head = LoRA(model.inner[0]), LoRA(model.head)
adapted = sequences(100, 3, generator)
print(f"after adapting to steps of three: {train(model, adapted, 120, 2e-2):.2f}")

# %% [markdown]
# ## The posterior of the adapters
#
# Targets are the next tokens: the labels are shifted here, and `ignore_index` would leave padding out.

# %%
model.eval()
batches = [(part[:, :-1], part[:, 1:]) for part in adapted.split(50)]
la = sampla.LinearisedLaplace(model, sampla.Categorical(ignore_index=-100), num_samples=16, progress=False).fit(batches)
print(la.report_)

# %% [markdown]
# ## Where it is unsure
#
# Sequences of the kind it was adapted to, of the kind it was trained on before, and of letters in any order.

# %%
kinds = {
    "steps of three": sequences(300, 3, generator),
    "steps of one": sequences(300, 1, generator),
    "any order": torch.randint(LETTERS, (300, LENGTH + 1), generator=generator),
}
figure, axes = plt.subplots(figsize=(8, 3.2), layout="constrained")
for number, (name, tokens) in enumerate(kinds.items()):
    pred, targets = la.predict(tokens[:, :-1]), tokens[:, 1:]
    alone = torch.distributions.Categorical(logits=pred.mean)
    axes.plot(pred.entropy.mean(0), color=f"C{number}", label=name)
    axes.plot(alone.entropy().mean(0), color=f"C{number}", linestyle=":")
    nll, nll_alone = -pred.log_prob(targets).mean() / LENGTH, -alone.log_prob(targets).mean()
    print(f"{name:15} -log p of a letter: {nll:.2f}, of the model alone {nll_alone:.2f}")
axes.set(xlabel="place", ylabel="entropy, nats", ylim=(0, None))
axes.legend(frameon=False)

# %% [markdown]
# Dotted: the model alone. How long texts, padding and masks go: [batches of other
# forms](../how-to/networks.md#batches-of-other-forms).
