"""Error bars for a graph neural network, with batches of torch_geometric's loader.

pip install sampla torch_geometric

A batch of graphs is one object, which is never cut. ``call=`` says how the network is called with it, and ``unpack=``
where its targets are.
"""

import torch
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GCNConv, global_mean_pool

import sampla


class Net(torch.nn.Module):
    """Two convolutions, the mean over each graph, and one number for it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = GCNConv(3, 8), GCNConv(8, 8), torch.nn.Linear(8, 1)

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        hidden = self.second(self.first(x, edge_index).tanh(), edge_index).tanh()
        return self.head(global_mean_pool(hidden, batch))


def graph(nodes: int) -> Data:
    """Random edges; the target is the mean of a function of the nodes."""
    x = torch.randn(nodes, 3)
    target = x[:, :1].tanh().mean(0, keepdim=True) + 0.05 * torch.randn(1, 1)
    return Data(x=x, edge_index=torch.randint(0, nodes, (2, 2 * nodes)), y=target)


torch.manual_seed(0)
graphs = [graph(4 + k % 5) for k in range(80)]
loader = DataLoader(graphs[:60], batch_size=20, shuffle=True)
net = Net()
optimiser = torch.optim.Adam(net.parameters(), lr=0.02)
for _ in range(40):
    for batch in loader:
        optimiser.zero_grad()
        torch.nn.functional.mse_loss(net(batch.x, batch.edge_index, batch.batch), batch.y).backward()
        optimiser.step()

la = sampla.LinearisedLaplace(
    net.eval(), "gaussian", call=lambda net, batch: net(batch.x, batch.edge_index, batch.batch), progress=False
)
la.fit(loader, unpack=lambda batch: (batch, batch.y))
pred = la.predict(DataLoader(graphs[60:], batch_size=20))

print(f"held out: error {(pred.mean - pred.targets).square().mean().sqrt():.3f}, ", end="")
print(f"said {pred.variance_total.mean().sqrt():.3f}, without noise {pred.variance.mean().sqrt():.3f}")
