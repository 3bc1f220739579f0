"""The environment variables that tell a process where it stands in the gang.

The PET_* names are those that torchrun reads and that the Kubeflow training operator injects
(https://github.com/pytorch/pytorch/blob/main/torch/distributed/argparse_util.py).
"""

NUM_NODES = "PET_NNODES"
PROCESSES_PER_NODE = "PET_NPROC_PER_NODE"
NODE_RANK = "PET_NODE_RANK"
MASTER_ADDRESS = "PET_MASTER_ADDR"
MASTER_PORT = "PET_MASTER_PORT"

# An Indexed Job numbers the pods of one Job. Where a gang is made of two Jobs (leader and workers), the node's rank
# is the first rank of its role plus this index.
FIRST_NODE_RANK = "FINETUNE_FIRST_NODE_RANK"
JOB_COMPLETION_INDEX = "JOB_COMPLETION_INDEX"

ATTEMPT = "FINETUNE_ATTEMPT"

# The pod's terminationGracePeriodSeconds: between SIGTERM and SIGKILL the training finishes its micro-batch and writes
# a checkpoint.
TERMINATION_GRACE_SECONDS = "FINETUNE_TERMINATION_GRACE_SECONDS"
DEFAULT_TERMINATION_GRACE_SECONDS = 300

# Memory of one GPU, in bytes. Prepare has no GPU to ask; where it is not set, what was estimated is only reported.
GPU_MEMORY_BYTES = "FINETUNE_GPU_MEMORY_BYTES"

HUGGING_FACE_TOKEN = "HF_TOKEN"
HUGGING_FACE_ENDPOINT = "HF_ENDPOINT"
WANDB_API_KEY = "WANDB_API_KEY"
SECRET_NAMES = (HUGGING_FACE_TOKEN, WANDB_API_KEY)

RENDEZVOUS_PORT = 29500

# Where several jobs share one machine, each needs a port of its own for its exporter; `series.METRICS_PORT` when unset.
METRICS_PORT = "FINETUNE_METRICS_PORT"
