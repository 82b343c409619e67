"""ResNet-20 on CIFAR-10: sampla, laplace-torch, SWAG and the network alone.

python experiments/cifar10_resnet20/run.py --root DIR --checkpoints DIR [--images N] [--quick]; see
classification/runner.py for the rest.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder that holds classification/

from classification.runner import main
from config import EXPERIMENT

if __name__ == "__main__":
    main(EXPERIMENT)
