"""Rows on several processors: the same outcomes, in the same order."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_trainer.contract.dataset import Dataset
from finetune_trainer.contract.spec import Training
from finetune_trainer.contract.termination import Reason
from finetune_trainer.data.parallel import PARALLEL_FROM_BYTES, Workers, workers
from finetune_trainer.data.read import Row, read_rows
from finetune_trainer.data.render import Renderer
from finetune_trainer.data.rows import Outcome, RowWork
from finetune_trainer.data.template import load_tokenizer
from finetune_trainer.errors import TrainerError
from tests import chat_models

DATASET = Dataset(path="rows.jsonl", format="openai")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> RowWork:
    directory = tmp_path_factory.mktemp("tokenizer")
    chat_models.write_tokenizer(directory)
    return RowWork(
        Renderer(load_tokenizer(directory)), Training(max_sequence_length=64), 0.1, chat_models.VOCABULARY_SIZE
    )


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    lines = [
        json.dumps({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "x" * number}]})
        for number in range(200)
    ]
    lines[7] = '{"messages": ['
    path.write_text("\n".join(lines))
    return list(read_rows(path, "rows.jsonl"))


def told(outcomes: Iterator[Outcome]) -> list[tuple[object, ...]]:
    return [
        (
            one.place,
            str(one.error),
            one.error and one.error.defect,
            one.left_out,
            one.fingerprint,
            one.held_out,
            [(document.tokens.tolist(), document.trained.tolist()) for document in one.documents],
        )
        for one in outcomes
    ]


def test_two_processes_say_what_one_says_in_the_same_order(work: RowWork, rows: list[Row]) -> None:
    with workers(work, PARALLEL_FROM_BYTES, 2) as many:
        together = told(many.outcomes(rows, DATASET))
    alone = told(Workers(work, None, 1).outcomes(rows, DATASET))
    assert together == alone
    # A row without words (row 1), one that is no JSON (row 8), and 198 good ones.
    assert [place for place, _, defect, *_ in alone if defect] == ["rows.jsonl, row 1", "rows.jsonl, row 8"]


def test_a_process_that_is_killed_is_told_with_what_to_do(work: RowWork, rows: list[Row]) -> None:
    def killing() -> Iterator[Row]:
        yield from rows
        [victim, *_] = many._pool._processes  # type: ignore[union-attr, misc]
        os.kill(victim, signal.SIGKILL)
        yield from rows * 3

    with pytest.raises(TrainerError) as error, workers(work, PARALLEL_FROM_BYTES, 2) as many:
        list(many.outcomes(killing(), DATASET))
    assert error.value.reason is Reason.ERROR
    assert "give prepare more memory" in error.value.message


def test_an_error_of_the_model_ends_all_of_them(work: RowWork, rows: list[Row]) -> None:
    foreign = RowWork(work.renderer, work.training, 0, vocab_size=100)
    with pytest.raises(TrainerError) as error, workers(foreign, PARALLEL_FROM_BYTES, 2) as many:
        list(many.outcomes(rows, DATASET))
    assert error.value.reason is Reason.MODEL_UNSUPPORTED


def test_little_data_starts_no_process(work: RowWork) -> None:
    with workers(work, PARALLEL_FROM_BYTES - 1, 8) as many:
        assert many._pool is None


@pytest.mark.gang
def test_a_worker_does_not_outlive_whoever_started_it(tmp_path: Path) -> None:
    # Started in a process of its own, which then dies without cleaning up.
    script = tmp_path / "orphans.py"
    script.write_text(
        "import os, sys\n"
        "from pathlib import Path\n"
        "from finetune_trainer.contract.spec import Training\n"
        "from finetune_trainer.data.parallel import workers\n"
        "from finetune_trainer.data.render import Renderer\n"
        "from finetune_trainer.data.rows import RowWork\n"
        "from finetune_trainer.data.template import load_tokenizer\n"
        "if __name__ == '__main__':\n"
        "    work = RowWork(Renderer(load_tokenizer(Path(sys.argv[1]))), Training(), 0, 512)\n"
        "    with workers(work, 1 << 30, 2) as many:\n"
        "        many._pool.submit(os.getpid).result()\n"
        "        print(*many._pool._processes, flush=True)\n"
        "        os.kill(os.getpid(), 9)\n"
    )
    chat_models.write_tokenizer(tmp_path)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[4] / "trainer")}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL
    children = [int(number) for number in done.stdout.split()]
    assert children
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [child for child in children if Path(f"/proc/{child}").exists()]
