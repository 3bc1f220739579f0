"""Two questions to the Hugging Face Hub: what shape a model has, and whether it may be downloaded.

Asked from this machine, which may see another network than the pods do.
"""

import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from finetune_cli.errors import CommandError, ExitCode
from finetune_cli.hub_access import Access
from finetune_trainer.architecture import ModelShape, parse_config
from finetune_trainer.contract.spec import HuggingFaceModel
from finetune_trainer.errors import TrainerError

PUBLIC_HUB = "https://huggingface.co"
_SECONDS = 10.0


@dataclass(frozen=True)
class Hub:
    """Which Hub, and with whose token."""

    endpoint: str = PUBLIC_HUB
    token: str | None = None

    def shape_of(self, model: HuggingFaceModel) -> ModelShape:
        """Return the shape of a model, from its config.json.

        Raises:
            CommandError: it cannot be read from here, or the trainer does not support it.
        """
        url = f"{self.endpoint}/{model.repository}/resolve/{model.revision}/config.json"
        try:
            with self._open(url) as response:
                return shape_in(response.read().decode())
        except urllib.error.HTTPError as error:
            what = "is gated, private or not there" if error.code in (401, 403, 404) else f"answers {error.code}"
            raise CommandError(f"{model.repository}: {what} on {self.endpoint} (HF_TOKEN is used where set)") from error
        except OSError as error:
            raise CommandError(f"{self.endpoint} cannot be reached from here: {error}") from error

    def access(self, repository: str, kind: str) -> Access:
        """Return whether a model or data set may be read; `kind` is `models` or `datasets`."""
        path = repository if kind == "models" else f"datasets/{repository}"
        try:
            # NB: of a gated repository the Hub lists the files to everybody; only a file tells.
            with self._open(f"{self.endpoint}/api/{kind}/{repository}/revision/main") as response:
                names = [file["rfilename"] for file in json.load(response).get("siblings", [])]
            small = next((name for name in names if name in ("config.json", "README.md")), None)
            if small is not None:
                self._open(f"{self.endpoint}/{path}/resolve/main/{small}").close()
        except urllib.error.HTTPError as error:
            return Access.REFUSED if error.code in (401, 403, 404) else Access.UNKNOWN
        except (OSError, ValueError):
            return Access.UNKNOWN
        return Access.OPEN

    def _open(self, url: str) -> Any:
        headers = {"User-Agent": "kubectl-finetune"} | ({"Authorization": f"Bearer {self.token}"} if self.token else {})
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_SECONDS)


def shape_in(config: str) -> ModelShape:
    """Return the shape that a config.json describes.

    Raises:
        CommandError: it is none, or the trainer does not support such a model.
    """
    try:
        document = json.loads(config)
    except ValueError as error:
        raise CommandError(f"config.json is no JSON: {error}", ExitCode.USAGE) from error
    if not isinstance(document, dict):
        raise CommandError("config.json is no JSON object", ExitCode.USAGE)
    try:
        return parse_config(document)
    except TrainerError as error:
        raise CommandError(error.message) from error
