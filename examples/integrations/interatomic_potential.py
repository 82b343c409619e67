"""Energies and forces with error bars, of a pretrained interatomic potential (CHGNet, whose weights its package has).

pip install sampla chgnet

The data stand in for DFT calculations that a potential was fine-tuned on: shaken cells of MgO, with the network's own
energies and forces as targets. With noise and prior given, the error bars do not depend on the targets.
"""

import torch
from chgnet.model import CHGNet
from pymatgen.core import Lattice, Structure

import sampla


def shaken(seed: int, lattice: float = 4.25, by: float = 0.1) -> Structure:
    cell = Structure.from_spacegroup("Fm-3m", Lattice.cubic(lattice), ["Mg", "O"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    return cell.get_primitive_structure().perturb(by, seed=seed)


def energy_and_forces(net: CHGNet, graphs: list) -> torch.Tensor:
    """(n, 1 + 3 atoms), in eV per atom and eV / A."""
    found = net(graphs, task="ef")
    return torch.cat([found["e"][:, None], torch.stack(list(found["f"])).flatten(1)], 1)


net = CHGNet.load(use_device="cpu", verbose=False).eval()
graphs = [net.graph_converter(shaken(seed)) for seed in range(6)]
targets = energy_and_forces(net, graphs).detach()

noise = torch.tensor([0.003, *[0.05] * 6])  # standard deviations of energies and of forces
la = sampla.LinearisedLaplace(
    net, sampla.Gaussian(noise**-2), sampla.Isotropic(10.0, learn=False), call=energy_and_forces,
    parameters=["mlp.layers.4.*", "mlp.layers.7.*"], num_samples=8, tolerance=0.1, width="em", progress=False,
)  # fmt: skip
la.fit([(graphs, targets)])
print(f"samples solved for in {la.report_.passes:.0f} passes, to {la.report_.solve_error:.1%}")

for name, structure in {"like the data": shaken(9), "stretched by 12 %": shaken(9, lattice=4.76)}.items():
    pred = la.predict([net.graph_converter(structure)])
    energy, force = 1000 * pred.std[0, 0], pred.std[0, 1:].square().mean().sqrt()
    print(f"{name}: energy {pred.mean[0, 0]:.3f} eV +- {energy:.1f} meV per atom, forces +- {force:.3f} eV / A")
