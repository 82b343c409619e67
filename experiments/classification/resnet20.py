"""The published ResNet-20 of CIFAR-10, fitted to all 50,000 images."""

from experiments.classification.published import experiment
from experiments.classification.runner import main

EXPERIMENT = experiment(20)

if __name__ == "__main__":
    main(EXPERIMENT)
