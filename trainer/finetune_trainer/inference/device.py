"""Where a model is asked: the first GPU, or the CPU."""

import torch

from finetune_trainer.contract.spec import Device
from finetune_trainer.contract.termination import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.processors import num_available_cpus


def find_device(device: Device) -> torch.device:
    """Return the first GPU, or the CPU with as many threads as the container has processors.

    Raises:
        TrainerError: DEVICE_UNAVAILABLE.
    """
    if device is Device.CPU:
        torch.set_num_threads(num_available_cpus())
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise TrainerError(
            Reason.DEVICE_UNAVAILABLE,
            "compute.device is gpu, but CUDA finds no GPU here. Check that the node has a driver and the NVIDIA device "
            "plugin; or set compute.device: cpu",
        )
    return torch.device("cuda", 0)
