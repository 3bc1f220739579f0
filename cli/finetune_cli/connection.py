"""The way to the API server with a person's own credentials. The only file that knows kubernetes.

What is said over it is for `cluster` to know.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self
from urllib.parse import quote, urlencode

import urllib3
import yaml
from kubernetes import client, config
from kubernetes.stream import ws_client
from websocket import WebSocketException

from finetune_cli.errors import CommandError, ExitCode, NotPermitted, NotThere, Refused

# Whoever writes insecure-skip-tls-verify into his kubeconfig knows it; kubectl does not say so either.
urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)

USER_AGENT = "kubectl-finetune"
_TRANSIENT_CODES = frozenset({429, 500, 502, 503, 504})
_RETRY_DELAYS_SECONDS = (0.2, 1.0, 3.0)
_REQUEST_SECONDS = 30.0
_SERVICE_ACCOUNT_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


class Connection:
    """The API server of one cluster, for one user, who works in one namespace."""

    def __init__(self, configuration: client.Configuration, namespace: str) -> None:
        self.namespace = namespace
        self._configuration = configuration
        self._api = client.ApiClient(configuration)
        self._api.user_agent = USER_AGENT

    @classmethod
    def open(cls, kubeconfig: Path | None, context: str | None, namespace: str | None) -> Self:
        """Read credentials as kubectl does: --kubeconfig, KUBECONFIG, ~/.kube/config, then the pod's service account.

        Raises:
            CommandError: there are none, or the file is wrong.
        """
        configuration = client.Configuration()
        configuration.retries = False
        file = None if kubeconfig is None else str(kubeconfig)
        try:
            config.load_kube_config(file, context, configuration)
            default = _namespace_of_context(file, context)
        except (config.ConfigException, OSError, yaml.YAMLError) as error:
            if kubeconfig is None and context is None and _SERVICE_ACCOUNT_NAMESPACE.exists():
                config.load_incluster_config(client_configuration=configuration)
                default = _SERVICE_ACCOUNT_NAMESPACE.read_text(encoding="utf-8").strip()
            else:
                raise CommandError(
                    f"no way to reach a cluster: {error}. Name a kubeconfig with --kubeconfig or KUBECONFIG.",
                    ExitCode.UNREACHABLE,
                ) from error
        return cls(configuration, namespace or default or "default")

    def answer(
        self, method: str, path: str, what: str, query: Mapping[str, str], content: str | None, content_type: str
    ) -> bytes:
        """Send a request and return the answer; `what` is how a person calls what is asked about.

        Raises:
            CommandError: it is refused, or nobody answers.
        """
        timeout = urllib3.Timeout(total=_REQUEST_SECONDS)
        return bytes(self._open(method, path, what, query, content, content_type, timeout).data)

    def page(self, path: str, what: str, seconds: float) -> bytes:
        """Return a page that may not be there, after that many seconds at most.

        Raises:
            CommandError: it is refused, or nobody answers.
        """
        return bytes(self._open("GET", path, what, {}, None, "", urllib3.Timeout(total=seconds)).data)

    def lines(self, path: str, what: str, query: Mapping[str, str], *, endless: bool) -> Iterator[str]:
        """Yield the lines of an answer as they come; of an endless one any pause is waited for.

        Raises:
            CommandError: it is refused, or nobody answers.
        """
        timeout = urllib3.Timeout(connect=_REQUEST_SECONDS, read=None if endless else _REQUEST_SECONDS)
        response = self._open("GET", path, what, query, None, "", timeout)
        rest = b""
        try:
            for chunk in response.stream(65536):
                *lines, rest = (rest + chunk).split(b"\n")
                yield from (line.decode(errors="replace") for line in lines)
        except (urllib3.exceptions.HTTPError, OSError):
            return  # the node or the connection went; what was read stays true
        finally:
            response.release_conn()
        if rest:
            yield rest.decode(errors="replace")

    def start(self, pod: str, command: Sequence[str], container: str) -> "Process":
        """Run a command in a container of a pod.

        Raises:
            CommandError: the container does not run, or this user may not do that.
        """
        return Process(self._configuration, self._api, self.namespace, pod, command, container)

    def _open(
        self,
        method: str,
        path: str,
        what: str,
        query: Mapping[str, str],
        content: str | None,
        content_type: str,
        timeout: urllib3.Timeout,
    ) -> urllib3.BaseHTTPResponse:
        """Send a request, again where nothing was changed and that may help; return when the answer begins."""
        query = {name: value for name, value in query.items() if value}
        url = self._configuration.host + quote(path, safe="/:@") + (f"?{urlencode(query)}" if query else "")
        headers = _headers(self._api, content_type if content is not None else "")
        delays = _RETRY_DELAYS_SECONDS if method == "GET" else ()
        for delay_seconds in (*delays, None):
            try:
                response: urllib3.BaseHTTPResponse = self._api.rest_client.pool_manager.request(
                    method, url, body=content, headers=headers, timeout=timeout, preload_content=False, retries=False
                )
            except (urllib3.exceptions.HTTPError, OSError) as error:
                failure: CommandError = CommandError(
                    f"{what}: {self._configuration.host} does not answer: {error}", ExitCode.UNREACHABLE
                )
            else:
                if 200 <= response.status < 300:
                    return response
                failure = _failure(method, what, self.namespace, response.status, response.data)
                if response.status not in _TRANSIENT_CODES:
                    raise failure
            if delay_seconds is None or "/proxy" in path:
                break
            time.sleep(delay_seconds)
        raise failure


class Process:
    """A command in a container, over a websocket."""

    def __init__(
        self,
        configuration: client.Configuration,
        api: client.ApiClient,
        namespace: str,
        pod: str,
        command: Sequence[str],
        container: str,
    ) -> None:
        query = [("command", part) for part in command]
        query += [("container", container), ("stdout", "true"), ("stderr", "true")]
        url = f"{configuration.host}/api/v1/namespaces/{namespace}/pods/{pod}/exec?{urlencode(query)}"
        headers = {name.lower(): value for name, value in _headers(api, "").items()}
        address = url.replace("https://", "wss://", 1).replace("http://", "ws://", 1)
        try:
            self._socket = ws_client.WSClient(configuration, address, headers, capture_all=False, binary=True)
        except (WebSocketException, OSError) as error:
            raise _exec_failure(pod, error) from error
        self.stderr = ""
        self.exit_code = -1

    def chunks(self, seconds: float | None) -> Iterator[bytes]:
        """Yield standard output as it comes, until the command has ended.

        Raises:
            CommandError: it took longer than that many seconds, or the connection broke.
        """
        deadline, status, is_open = None if seconds is None else time.monotonic() + seconds, b"", True
        try:
            # NB: reading a channel receives for all of them, so what came last is read in one more round.
            while is_open:
                is_open = self._socket.is_open()
                self._socket.update(timeout=1)
                yield self._socket.read_channel(ws_client.STDOUT_CHANNEL)
                self.stderr += self._socket.read_channel(ws_client.STDERR_CHANNEL).decode(errors="replace")
                status += self._socket.read_channel(ws_client.ERROR_CHANNEL)
                if is_open and deadline is not None and time.monotonic() > deadline:
                    raise CommandError(f"the command did not end within {seconds:.0f} s", ExitCode.TIMED_OUT)
        except (WebSocketException, OSError) as error:
            raise CommandError(f"the connection to the pod broke: {error}") from error
        finally:
            self._socket.close()
        self.exit_code = _exit_code(status)


def _exit_code(status: bytes) -> int:
    """Return the exit code in the last word of an exec: https://github.com/kubernetes/kubernetes/pull/26541."""
    try:
        told = json.loads(status)
    except ValueError as error:
        raise CommandError("the connection to the pod broke before the command had ended") from error
    if told.get("status") == "Success":
        return 0
    causes = (told.get("details") or {}).get("causes") or []
    codes = [cause["message"] for cause in causes if cause.get("reason") == "ExitCode"]
    if not codes:
        raise CommandError(str(told.get("message", "the command could not be started")))
    return int(codes[0])


def _headers(api: client.ApiClient, content_type: str) -> dict[str, str]:
    headers = {"Accept": "application/json, */*", "User-Agent": USER_AGENT}
    if content_type:
        headers["Content-Type"] = content_type
    token = api.configuration.get_api_key_with_prefix("BearerToken") or api.configuration.get_api_key_with_prefix(
        "authorization"
    )
    if token:
        headers["Authorization"] = token
    elif api.configuration.username:
        headers["Authorization"] = api.configuration.get_basic_auth_token()
    return headers


def _namespace_of_context(file: str | None, context: str | None) -> str | None:
    contexts, active = config.list_kube_config_contexts(file)
    chosen = next((entry for entry in contexts if entry["name"] == context), active) if context else active
    found = chosen["context"].get("namespace")
    return None if found is None else str(found)


def _failure(method: str, what: str, namespace: str, code: int, data: bytes) -> CommandError:
    try:
        message = str(json.loads(data).get("message") or "")
    except (ValueError, AttributeError):
        message = data[:200].decode(errors="replace").strip()
    if code == 401:
        return NotPermitted(f"{what}: not permitted: the credentials are not accepted")
    if code == 403 and ("cannot" in message or not message):
        return NotPermitted(f"{what}: not permitted: {message}. {_role_that_suffices(method, namespace, message)}")
    if code == 404:
        missing = message if "could not find the requested resource" not in message else "the cluster has no such kind"
        return NotThere(f"{what} in namespace {namespace}: {missing or 'not found'}")
    if code in (403, 409, 422):
        return Refused(f"{what} is refused: {message}")
    return CommandError(f"{method} {what}: the API server answered {code}: {message}")


def _role_that_suffices(method: str, namespace: str, message: str) -> str:
    role = "view" if method == "GET" and "proxy" not in message and "secrets" not in message else "edit"
    if "at the cluster scope" in message:
        return "A role in one namespace does not give that; docs/user/command-line.md tells what each command needs."
    return f"Ask for the ClusterRole `{role}` in namespace {namespace}, which suffices for it."


def _exec_failure(pod: str, error: Exception) -> CommandError:
    code, words = getattr(error, "status_code", None), str(error)
    if code in (401, 403):
        return NotPermitted(
            f"pods/exec in pod {pod}: not permitted. Your role needs `get` and `create` on pods/exec, which `edit` has."
        )
    if code == 404:
        return NotThere(f"pod {pod} is not there any more")
    return CommandError(f"pod {pod}: no command can be run in it: {words}")
