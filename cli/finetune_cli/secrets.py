"""The tokens of a job: from a file into its Secret, and nowhere else."""

from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path

from dotenv import dotenv_values

from finetune_cli.cluster import Body, Cluster
from finetune_cli.errors import CommandError, ExitCode, NotThere
from finetune_cli.kinds import SECRET
from finetune_operator import names
from finetune_trainer.contract.environment import SECRET_NAMES


def read_tokens(path: Path) -> dict[str, str]:
    """Return the tokens in a file of NAME=VALUE lines; other names in it are passed over.

    Raises:
        CommandError: USAGE, it cannot be read, or names none of them.
    """
    try:
        found = dotenv_values(path, interpolate=False, encoding="utf-8") if path.is_file() else None
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{path}: cannot be read: {type(error).__name__}", ExitCode.USAGE) from error
    if found is None:
        raise CommandError(f"{path}: there is no such file", ExitCode.USAGE)
    tokens = {name: value.strip() for name in SECRET_NAMES if (value := found.get(name)) and value.strip()}
    if not tokens:
        raise CommandError(f"{path}: has neither of {' and '.join(SECRET_NAMES)}", ExitCode.USAGE)
    return tokens


def put_tokens(cluster: Cluster, secret: str, tokens: Mapping[str, str]) -> str:
    """Make the Secret, or change these keys of it, and say which keys it has got; never what they are.

    Raises:
        CommandError: this user may not.
    """
    data = {name: b64encode(value.encode()).decode() for name, value in tokens.items()}
    keys = ", ".join(sorted(tokens))
    try:
        cluster.patch(SECRET, secret, {"data": data})
    except NotThere:
        cluster.create(SECRET, _manifest(secret, data))
        return f"secret/{secret} created ({keys})"
    return f"secret/{secret} configured ({keys})"


def keys_of(cluster: Cluster, secret: str) -> frozenset[str] | None:
    """Return which tokens a Secret has, or None when it does not exist.

    Raises:
        CommandError: this user may not read Secrets.
    """
    try:
        data = cluster.get(SECRET, secret).get("data") or {}
    except NotThere:
        return None
    return frozenset(name for name in SECRET_NAMES if data.get(name))


def _manifest(secret: str, data: Mapping[str, str]) -> Body:
    labels = {names.Label.PART_OF.value: names.OPERATOR}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": {"name": secret, "labels": labels},
        "data": dict(data),
    }
