"""Keys and values of the tokens that were read, so that each new token is computed alone."""

import torch

from finetune_trainer.architecture import ModelShape


class KeyValueCache:
    """For each layer the keys and the values of b rows, [b, num_kv_heads, capacity, head_dim]."""

    def __init__(
        self, shape: ModelShape, num_rows: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        size = (num_rows, shape.num_kv_heads, capacity, shape.head_dim)
        # Zeros, because places that nothing was written to are multiplied with nothing, and may not be NaN then.
        self._keys = [torch.zeros(size, dtype=dtype, device=device) for _ in range(shape.num_layers)]
        self._values = [torch.zeros(size, dtype=dtype, device=device) for _ in range(shape.num_layers)]
        self.capacity = capacity
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

    def put(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor, place: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the keys and values of one new token a row at a place, int64 [1], and return those of all places.

        The place is a tensor, and what is returned is always as large: so a GPU can do it again and again without being
        told anew.
        """
        self._keys[layer].index_copy_(2, place, keys)
        self._values[layer].index_copy_(2, place, values)
        return self._keys[layer], self._values[layer]

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Keep some rows and forget the others; int64 [number of rows to keep]."""
        self._keys = [keys[rows] for keys in self._keys]
        self._values = [values[rows] for values in self._values]
