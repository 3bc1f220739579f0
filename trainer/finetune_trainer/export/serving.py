"""How an adapter is served with vLLM (https://docs.vllm.ai/en/latest/features/lora.html)."""

from finetune_trainer.toolcalls import CallStyle

# What vLLM takes for --max-lora-rank.
# https://github.com/vllm-project/vllm/blob/main/vllm/config/lora.py (MaxLoRARanks)
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# https://docs.vllm.ai/en/latest/features/tool_calling.html
VLLM_TOOL_PARSERS = {CallStyle.HERMES: "hermes", CallStyle.LLAMA: "llama3_json", CallStyle.MISTRAL: "mistral"}


def vllm_command(base_model: str, name: str, adapter: str, rank: int, style: CallStyle | None) -> str | None:
    """Return the command that serves base and adapter, or None where the rank is larger than vLLM takes."""
    max_rank = next((allowed for allowed in VLLM_RANKS if allowed >= rank), None)
    if max_rank is None:
        return None
    flags = ["--enable-lora", f"--lora-modules {name}={adapter}", f"--max-lora-rank {max_rank}", *_tool_flags(style)]
    return " ".join([f"vllm serve {base_model}", *flags])


def vllm_merged_command(merged: str, name: str, style: CallStyle | None) -> str:
    """Return the command that serves a merged model."""
    return " ".join([f"vllm serve {merged} --served-model-name {name}", *_tool_flags(style)])


def _tool_flags(style: CallStyle | None) -> list[str]:
    return [] if style is None else [f"--enable-auto-tool-choice --tool-call-parser {VLLM_TOOL_PARSERS[style]}"]
