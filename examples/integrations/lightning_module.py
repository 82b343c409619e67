"""Error bars for a LightningModule, from the data module that it was trained with.

pip install sampla lightning
"""

import lightning
import torch
from torch.utils.data import DataLoader, TensorDataset

import sampla


class Classifier(lightning.LightningModule):
    """Two classes, one inside the other."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(2, 12), torch.nn.Tanh(), torch.nn.Linear(12, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        x, y = batch
        return torch.nn.functional.cross_entropy(self(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.05)


class Rings(lightning.LightningDataModule):
    """The training loader may shuffle."""

    def setup(self, stage: str) -> None:  # noqa: ARG002
        x = torch.randn(120, 2, generator=torch.Generator().manual_seed(0))
        self.data = TensorDataset(x, (x.norm(dim=1) > 1.2).long())

    def train_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(*self.data[:80]), batch_size=20, shuffle=True)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(*self.data[80:]), batch_size=20)


lightning.seed_everything(0, verbose=False)
module, rings = Classifier(), Rings()
quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
lightning.Trainer(max_epochs=20, accelerator="cpu", **quiet).fit(module, datamodule=rings)

la = sampla.LinearisedLaplace(module.eval(), "categorical", num_samples=8, progress=False)
la.fit(rings.train_dataloader())
pred = la.predict(rings.test_dataloader())  # with the loader's targets

print(f"held out: accuracy {(pred.probs.argmax(1) == pred.targets).float().mean():.2f}", end="")
print(f", log score {pred.log_prob(pred.targets).mean():.3f} nats")
print("what the network does not know, in nats:", la.predict(torch.tensor([[0.0, 0.0], [9.0, 9.0]])).mutual_information)
