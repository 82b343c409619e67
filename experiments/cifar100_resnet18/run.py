"""ResNet-18 on CIFAR-100: sampla, laplace-torch's last layer, and the network alone.

python experiments/cifar100_resnet18/run.py --root DIR --checkpoints DIR [--images N] [--quick], with the network that
train.py left in --checkpoints; see classification/runner.py for the rest, and plan.py for what a full run would take.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder that holds classification/

from classification.runner import main
from config import EXPERIMENT

if __name__ == "__main__":
    main(EXPERIMENT)
