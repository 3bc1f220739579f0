"""What is written is what transformers' own generation writes, whatever is written beside it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from finetune_trainer.architecture import read_shape
from finetune_trainer.inference import generate as generate_module
from finetune_trainer.inference.decoder import Decoder, load_decoder
from finetune_trainer.inference.generate import Tokens, Writing, Written, generate
from tests.tiny_run import write_tiny_model
from tests.unit.trainer.test_model import MODELS

CPU = torch.device("cpu")
PROMPTS = [
    np.array(prompt, np.int32) for prompt in ([5, 17, 99, 3, 64], [1], [64, 127, 0, 31, 8, 77, 100, 2, 45, 9], [7, 7])
]
NUM_NEW_TOKENS = 24
NO_TOKEN = 9999  # beyond the vocabulary: never written


def decoder_of(directory: Path) -> Decoder:
    return load_decoder(directory, read_shape(directory), torch.float32, CPU)


def reference(model: Any, prompt: np.ndarray, stop_tokens: list[int]) -> tuple[int, ...]:
    """What transformers writes after one prompt alone, without the token that ends it."""
    ids = torch.tensor(prompt[None].astype(np.int64))
    written = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=NUM_NEW_TOKENS,
        eos_token_id=stop_tokens,
        pad_token_id=0,
    )
    tokens = written[0, len(prompt) :].tolist()
    return tuple(tokens[:-1] if tokens[-1] in stop_tokens else tokens)


@pytest.mark.parametrize(("model_type", "settings"), MODELS.values(), ids=MODELS.keys())
def test_greedy_turns_are_those_of_transformers(tmp_path: Path, model_type: str, settings: dict[str, Any]) -> None:
    model = write_tiny_model(tmp_path, model_type, **settings)
    endless = [reference(model, prompt, [NO_TOKEN]) for prompt in PROMPTS]
    # Tokens that really come: some rows end early and leave the batch, others go on.
    stop_tokens = sorted({endless[0][10], endless[2][4]})
    writing = Writing(frozenset(stop_tokens), NUM_NEW_TOKENS, adapted=False)
    written = generate(decoder_of(tmp_path), PROMPTS, writing, batch_size=4)
    assert [row.tokens for row in written] == [reference(model, prompt, stop_tokens) for prompt in PROMPTS]
    assert [row.ended for row in written] == [len(row.tokens) < NUM_NEW_TOKENS for row in written]
    assert {row.ended for row in written[:3:2]} == {True}


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_what_is_written_does_not_depend_on_the_batch(tmp_path: Path, batch_size: int) -> None:
    write_tiny_model(tmp_path)
    decoder, writing = decoder_of(tmp_path), Writing(frozenset(), 12, adapted=False)
    alone = [generate(decoder, [prompt], writing, 1)[0] for prompt in PROMPTS]
    assert generate(decoder, PROMPTS, writing, batch_size) == alone


def test_rows_that_have_ended_say_nothing_more_while_others_go_on(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    decoder = decoder_of(tmp_path)
    prompts = [np.arange(1, length, dtype=np.int32) for length in range(2, 14)]
    endless = generate(decoder, prompts, Writing(frozenset(), NUM_NEW_TOKENS, adapted=False), 1)
    # What two of them say third and ninth ends some rows early: fewer than are worth being dropped at once.
    writing = Writing(frozenset({endless[0].tokens[2], endless[5].tokens[8]}), NUM_NEW_TOKENS, adapted=False)
    alone = [generate(decoder, [prompt], writing, 1)[0] for prompt in prompts]
    assert generate(decoder, prompts, writing, 12) == alone
    assert len({len(row.tokens) for row in alone}) > 2


def test_a_batch_that_does_not_fit_is_halved_and_batches_grow_again_as_prompts_get_shorter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_model(tmp_path)
    decoder, writing = decoder_of(tmp_path), Writing(frozenset(), 2, adapted=False)
    prompts = [np.full(length, 5, np.int32) for length in [30] * 4 + [6] * 20]
    alone = [generate(decoder, [prompt], writing, 1)[0] for prompt in prompts]
    written, sizes = generate_module.write_batch, []

    def write_in_little_memory(decoder: Decoder, prompts: list[Tokens], writing: Writing) -> list[Written]:
        sizes.append(len(prompts))
        if len(prompts) * (len(prompts[0]) + writing.max_new_tokens) > 70:
            raise torch.OutOfMemoryError
        return written(decoder, prompts, writing)

    monkeypatch.setattr(generate_module, "write_batch", write_in_little_memory)
    assert generate(decoder, prompts, writing, 8) == alone
    # Of 32 tokens each eight and four do not fit; of eight tokens each as many as were asked for.
    assert sizes == [8, 4, 2, 2, 8, 8, 4]


def test_nothing_is_written_beyond_the_positions_that_a_model_tells_apart(tmp_path: Path) -> None:
    write_tiny_model(tmp_path, max_position_embeddings=16)
    prompts = [np.arange(10, dtype=np.int32), np.arange(16, dtype=np.int32)]
    written = [generate(decoder_of(tmp_path), [prompt], Writing(frozenset(), 50, False), 1)[0] for prompt in prompts]
    assert [(len(row.tokens), row.ended) for row in written] == [(6, False), (0, False)]


def test_sampling_depends_on_the_seed_alone_and_a_low_temperature_is_greedy(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    decoder = decoder_of(tmp_path)

    def sample(temperature: float, seed: int) -> list[tuple[int, ...]]:
        writing = Writing(frozenset(), 12, False, temperature, seed)
        return [row.tokens for row in generate(decoder, PROMPTS, writing, 4)]

    assert sample(1.0, seed=1) == sample(1.0, seed=1) != sample(1.0, seed=2)
    assert sample(1e-4, seed=1) == sample(0.0, seed=1)


def test_an_empty_prompt_is_refused(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    with pytest.raises(ValueError, match="empty"):
        generate(decoder_of(tmp_path), [np.zeros(0, np.int32)], Writing(frozenset(), 1, False), 1)


def test_no_prompts_are_no_work(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    assert generate(decoder_of(tmp_path), [], Writing(frozenset(), 1, False), 8) == []
