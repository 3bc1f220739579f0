"""The trainer: prepares a model and its data, then fine-tunes it with LoRA on every GPU of every node."""

__version__ = "0.1.0"
