"""What each part of the fused step gains: the step is measured whole, and then with one part taken away at a time.

python -m benchmarks.trainer.ladder                            # Llama 3.1 8B, rank 64, 2 x 4096 tokens, bf16
python -m benchmarks.trainer.ladder --trained 0.2 --first 3    # where a fifth of the tokens are trained
"""

import argparse
import gc
import json
import sys
from collections.abc import Callable
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.trainer.step import Configuration, measure
from finetune_trainer.fused import attention, decoder, layer, linear
from finetune_trainer.fused.frozen import whole
from finetune_trainer.fused.frozen.weight import Operand
from finetune_trainer.fused.frozen.whole import WholeWeight
from finetune_trainer.kernels import plain

STEPS = 12


def forward_in_two_products(self: WholeWeight, operand: Operand, _: Tensor | None) -> Tensor:
    """Add the adapter's part to the output in a pass of its own."""
    return self.forward_apart(operand.joined[:, : self.size.inputs], operand.joined[:, self.size.inputs :])


def backward_in_two_products(self: WholeWeight, operand: Operand) -> Tensor:
    """Add the adapter's part to the gradient in a pass of its own."""
    return self.backward_frozen(operand).addmm_(operand.joined[:, self.size.outputs :], self.matrix_a)


WITHOUT: dict[str, list[Callable[[], object]]] = {
    "nothing taken away": [],
    "the last block computes all tokens": [lambda: patch.object(decoder, "MOST_WORTH_LEAVING_OUT", 0.0)],
    "nothing taken away, once more": [],
    "the gate's kernel makes no gradients of adapters": [lambda: patch.object(layer, "MAX_RANK_AT_THE_GATE", 0)],
    "adapters in products of their own": [
        lambda: patch.object(WholeWeight, "forward", forward_in_two_products),
        lambda: patch.object(WholeWeight, "backward", backward_in_two_products),
    ],
    "FlashAttention 2 in place of cuDNN": [lambda: patch.object(attention, "CUDNN_LENGTH_MULTIPLE", 1 << 30)],
    "PyTorch's operations in place of kernels": [
        partial(patch.object, module, "kernels_for", lambda _: plain) for module in (decoder, layer, linear, whole)
    ],
    "nothing taken away, again": [],
}


def main() -> int:
    """Measure one after another, and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=len(WITHOUT), help="measure only so many")
    parser.add_argument("--trained", type=float, default=1.0, help="share of tokens that are targets")
    arguments = parser.parse_args()
    for name, patches in list(WITHOUT.items())[: arguments.first]:
        started = [make() for make in patches]
        for change in started:
            change.start()  # type: ignore[attr-defined]
        result = measure(Configuration(steps=STEPS, trained=arguments.trained))
        for change in started:
            change.stop()  # type: ignore[attr-defined]
        figures = ("tokens_per_second", "peak_gib", "power_watts", "clock_mhz", "first_loss", "last_loss")
        print(json.dumps({"without": name} | {figure: result.get(figure) for figure in figures}), flush=True)
        gc.collect()
        torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
