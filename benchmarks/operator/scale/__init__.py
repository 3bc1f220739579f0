"""A thousand FineTuneJobs at once on fake nodes, and beside them the training-operator with a thousand PyTorchJobs."""
