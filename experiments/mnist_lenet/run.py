"""LeNet on MNIST: sampla, laplace-torch, SWAG, an ensemble and the network alone.

python experiments/mnist_lenet/run.py --root DIR [--quick]; see classification/runner.py for the rest.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder that holds classification/

from classification.runner import main
from config import EXPERIMENT

if __name__ == "__main__":
    main(EXPERIMENT)
