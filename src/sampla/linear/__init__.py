"""Large linear models in the interface of scikit-learn."""

from sampla.linear.logistic import BayesianLogisticRegression
from sampla.linear.regression import BayesianLinearRegression

__all__ = ["BayesianLinearRegression", "BayesianLogisticRegression"]
