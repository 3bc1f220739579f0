"""Running a model as it will be served, to score it: no server, one process, a GPU or a CPU.

Story, top to bottom: `adapter` reads a LoRA adapter in PEFT layout, `decoder` puts it on the base model's weights as
they lie in the Hugging Face layout, `cache` keeps keys and values, `generate` writes turns with them; `dialect`
is how the model's chat template asks and ends.

Nothing here is shared with the model that is trained (`model`, `lora`): what is scored is what the files say, read by
the conventions of those who will serve them, so that a fault of the export shows in the scores.
"""
