"""Keys and values of the tokens that were read, so that each new token is computed alone."""

import torch

from finetune_trainer.architecture import ModelShape


class KeyValueCache:
    """For each layer the keys and the values of b rows, [b, num_kv_heads, capacity, head_dim]."""

    def __init__(
        self, shape: ModelShape, num_rows: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        size = (num_rows, shape.num_kv_heads, capacity, shape.head_dim)
        self._keys = [torch.empty(size, dtype=dtype, device=device) for _ in range(shape.num_layers)]
        self._values = [torch.empty(size, dtype=dtype, device=device) for _ in range(shape.num_layers)]
        self.length = 0

    def append(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the keys and values of new tokens, [b, num_kv_heads, s, head_dim], and return those of all tokens.

        The length grows with `advance`, once all layers have been through.
        """
        end = self.length + keys.shape[2]
        self._keys[layer][:, :, self.length : end] = keys
        self._values[layer][:, :, self.length : end] = values
        return self._keys[layer][:, :, :end], self._values[layer][:, :, :end]

    def advance(self, num_tokens: int) -> None:
        """Count tokens whose keys and values every layer has added."""
        self.length += num_tokens

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Keep some rows and forget the others; int64 [number of rows to keep]."""
        self._keys = [keys[rows] for keys in self._keys]
        self._values = [values[rows] for values in self._values]
