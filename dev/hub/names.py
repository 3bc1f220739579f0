"""The names of the repositories that the mirror serves."""

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
TINY_LLAMA = "finetune-operator/tiny-random-llama"
GATED_TINY_LLAMA = "finetune-operator/tiny-random-llama-gated"

HERMES = "NousResearch/hermes-function-calling-v1"
GLAIVE = "glaiveai/glaive-function-calling-v2"
