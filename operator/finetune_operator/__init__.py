"""The operator: turns a FineTuneJob into the Kubernetes objects that prepare, train and keep its adapter."""

__version__ = "0.1.0"
