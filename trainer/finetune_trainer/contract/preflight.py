"""What prepare found in the data, in short; the job's report.html shows all of it."""

from pydantic import Field

from finetune_trainer.contract.report import Report


class PreflightReport(Report):
    """The data of a job in figures. A conversation is counted once, whatever its weight."""

    conversations: int = Field(description="Conversations that are trained on.")
    held_out_rows: int = Field(description="Rows that are kept for the evaluation.")
    duplicate_rows: int = Field(description="Rows whose turns are equal to those of an earlier row.")
    tokens_mean: float = Field(description="Tokens of a conversation before it is cut: mean.")
    tokens_p50: int = Field(description="Tokens of a conversation before it is cut: median.")
    tokens_p95: int = Field(description="Tokens of a conversation before it is cut: 95th percentile.")
    tokens_max: int = Field(description="Tokens of the longest conversation.")
    truncated_share: float = Field(description="Share of the conversations that are cut at maxSequenceLength.")
    packing_efficiency: float = Field(description="Share of the places of all sequences that hold a token.")
    tools: int = Field(description="Different functions that conversations could call.")
    tool_calls: int = Field(description="Calls of functions.")
    chat_template: str = Field(description="The chat template: how it writes tools, and its digest.")
    report_path: str = Field(default="", description="The whole report, relative to the shared filesystem's root.")
