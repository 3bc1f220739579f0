"""Puts an adapter on the Hugging Face Hub."""

import logging
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from finetune_trainer.contract.outcome import PushTo
from finetune_trainer.contract.termination import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.hub import PUBLIC_HUB, Hub

logger = logging.getLogger(__name__)

# NB: the errors of a connection are those of whichever HTTP library this version of huggingface_hub uses.
ConnectionFailure: type[Exception] = HfHubHTTPError.__bases__[0]
TOKEN_ADVICE = "HF_TOKEN in the Secret that spec.secretName names has to be a token that may write there"


def upload_adapter(hub: Hub, push: PushTo, directory: Path, message: str) -> str:
    """Upload the files of an adapter, and return `repository@commit`. The repository is made when it is not there.

    Raises:
        TrainerError: UPLOAD_FAILED, with what to do; the adapter on the shared filesystem is whole all the same.
    """
    endpoint = hub.endpoint or PUBLIC_HUB
    if hub.token is None:
        raise _failed(push, f"there is no HF_TOKEN: {TOKEN_ADVICE}")
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    try:
        api.create_repo(push.repository, private=push.private, exist_ok=True)
        commit = api.upload_folder(repo_id=push.repository, folder_path=directory, commit_message=message)
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            raise _failed(push, f"{endpoint} refuses the token: {TOKEN_ADVICE}") from error
        raise _failed(push, f"{endpoint} answers {_first_line(error)}") from error
    except (OSError, ValueError, RuntimeError, ConnectionFailure) as error:
        why = _first_line(error.__cause__ or error)
        raise _failed(push, f"{endpoint} cannot be reached, or broke off: {why}") from error
    logger.info("uploaded to %s/%s", endpoint, push.repository)
    return f"{push.repository}@{commit.oid}"


def _failed(push: PushTo, what: str) -> TrainerError:
    return TrainerError(
        Reason.UPLOAD_FAILED,
        f"export.pushTo: {push.repository} was not uploaded: {what}. The adapter is on the shared filesystem",
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
