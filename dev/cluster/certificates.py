"""Keys and certificates of the cluster, and the kubeconfigs made from them, with the openssl command line."""

import base64
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dev.cluster.commands import output_of
from dev.cluster.layout import (
    API_SERVER,
    CERTIFICATES,
    CLUSTER_DOMAIN,
    FIRST_SERVICE_ADDRESS,
    HOST_ADDRESS,
    KUBECONFIG,
    NODES,
)

PART = "certificates"
VALID_DAYS = "365"

CA_CERTIFICATE = CERTIFICATES / "ca.crt"
CA_KEY = CERTIFICATES / "ca.key"
SERVICE_ACCOUNT_KEY = CERTIFICATES / "service-account.key"
SERVICE_ACCOUNT_PUBLIC_KEY = CERTIFICATES / "service-account.pub"


@dataclass(frozen=True)
class Identity:
    """Somebody who proves who they are with a certificate.

    Attributes:
        name: file name of key and certificate.
        user: common name: the Kubernetes user.
        group: organization: the Kubernetes group; empty for none.
        alternative_names: what it serves as, in openssl's words, such as ``IP:10.96.0.1``; empty for a pure client.
    """

    name: str
    user: str
    group: str = ""
    alternative_names: tuple[str, ...] = ()

    @property
    def key(self) -> Path:
        """The private key's file."""
        return CERTIFICATES / f"{self.name}.key"

    @property
    def certificate(self) -> Path:
        """The certificate's file."""
        return CERTIFICATES / f"{self.name}.crt"

    @property
    def kubeconfig(self) -> Path:
        """A kubeconfig with which a daemon is this identity."""
        return CERTIFICATES / f"{self.name}.kubeconfig"


_API_NAMES = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", f"kubernetes.default.svc.{CLUSTER_DOMAIN}")
API_SERVER_IDENTITY = Identity(
    "kube-apiserver",
    "kube-apiserver",
    alternative_names=(
        *(f"DNS:{name}" for name in _API_NAMES),
        f"IP:{FIRST_SERVICE_ADDRESS}",
        f"IP:{HOST_ADDRESS}",
        "IP:127.0.0.1",
    ),
)
ETCD = Identity("etcd", "etcd", alternative_names=("IP:127.0.0.1",))
ETCD_CLIENT = Identity("kube-apiserver-etcd-client", "kube-apiserver-etcd-client")
KUBELET_CLIENT = Identity("kube-apiserver-kubelet-client", "kube-apiserver-kubelet-client", "system:masters")
ADMIN = Identity("admin", "kubernetes-admin", "system:masters")
CONTROLLER_MANAGER = Identity("kube-controller-manager", "system:kube-controller-manager")
SCHEDULER = Identity("kube-scheduler", "system:kube-scheduler")
PROXY = Identity("kube-proxy", "system:kube-proxy")
COREDNS = Identity("coredns", "finetune-cluster:coredns")
LOCAL_PATH_PROVISIONER = Identity("local-path-provisioner", "finetune-cluster:local-path-provisioner")
KUBELETS = {
    node.name: Identity(
        f"kubelet-{node.name}",
        f"system:node:{node.name}",
        "system:nodes",
        (f"DNS:{node.name}", f"IP:{node.address}"),
    )
    for node in NODES
}
_IDENTITIES = (
    ETCD,
    ETCD_CLIENT,
    API_SERVER_IDENTITY,
    KUBELET_CLIENT,
    ADMIN,
    CONTROLLER_MANAGER,
    SCHEDULER,
    PROXY,
    COREDNS,
    LOCAL_PATH_PROVISIONER,
    *KUBELETS.values(),
)


def ensure_certificates() -> str:
    """Make what is missing: the authority, the service accounts' key, one certificate and kubeconfig an identity."""
    CERTIFICATES.mkdir(parents=True, exist_ok=True)
    CERTIFICATES.chmod(0o700)
    made = 0
    if not CA_CERTIFICATE.exists():
        _make_key(CA_KEY)
        _make_authority()
    if not SERVICE_ACCOUNT_PUBLIC_KEY.exists():
        _make_key(SERVICE_ACCOUNT_KEY)
        _make_public_key()
    for identity in _IDENTITIES:
        if not identity.certificate.exists():
            _make_key(identity.key)
            _make_certificate(identity)
            made += 1
        write_file(identity.kubeconfig, kubeconfig(identity), 0o600)
    write_file(KUBECONFIG, kubeconfig(ADMIN), 0o600)
    return f"made {made} certificates" if made else "already there"


def kubeconfig(identity: Identity) -> str:
    """Return the text of a kubeconfig that carries its keys inside, so that it can be copied anywhere."""

    def inline(path: Path) -> str:
        return base64.b64encode(path.read_bytes()).decode()

    return f"""apiVersion: v1
kind: Config
clusters:
- name: finetune
  cluster: {{server: "{API_SERVER}", certificate-authority-data: {inline(CA_CERTIFICATE)}}}
users:
- name: {identity.name}
  user: {{client-certificate-data: {inline(identity.certificate)}, client-key-data: {inline(identity.key)}}}
contexts:
- name: finetune
  context: {{cluster: finetune, user: {identity.name}}}
current-context: finetune
"""


def write_file(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file in one stroke, or leave it alone when it already says just this."""
    if path.exists() and path.read_text() == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own: both nodes' steps write what they share, at once.
    descriptor, temporary = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        os.fchmod(descriptor, mode)
    Path(temporary).replace(path)


def _make_key(path: Path) -> None:
    _openssl(path, ["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"])


def _make_public_key() -> None:
    _openssl(SERVICE_ACCOUNT_PUBLIC_KEY, ["pkey", "-in", str(SERVICE_ACCOUNT_KEY), "-pubout"])


def _make_authority() -> None:
    request = ["req", "-x509", "-new", "-key", str(CA_KEY), "-subj", "/CN=finetune-cluster", "-days", VALID_DAYS]
    extensions = ["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign,digitalSignature"]
    _openssl(CA_CERTIFICATE, [*request, "-config", _configuration(), *_added(extensions)])


def _make_certificate(identity: Identity) -> None:
    subject = (f"/O={identity.group}" if identity.group else "") + f"/CN={identity.user}"
    request = ["req", "-x509", "-new", "-key", str(identity.key), "-subj", subject, "-days", VALID_DAYS]
    extensions = ["basicConstraints=critical,CA:FALSE", "extendedKeyUsage=clientAuth,serverAuth"]
    if identity.alternative_names:
        extensions.append(f"subjectAltName={','.join(identity.alternative_names)}")
    authority = ["-CA", str(CA_CERTIFICATE), "-CAkey", str(CA_KEY)]
    _openssl(identity.certificate, [*request, *authority, "-config", _configuration(), *_added(extensions)])


def _added(extensions: Sequence[str]) -> list[str]:
    return [word for extension in extensions for word in ("-addext", extension)]


def _configuration() -> str:
    """Return an openssl configuration that adds nothing of its own to a certificate."""
    path = CERTIFICATES / "openssl.cnf"
    write_file(path, "[req]\ndistinguished_name = subject\n[subject]\n")
    return str(path)


def _openssl(path: Path, command: Sequence[str]) -> None:
    """Write what openssl makes to a file in one stroke: a killed run leaves the whole file or none."""
    write_file(path, output_of(PART, ["openssl", *command], advice="is openssl 3 installed?"), 0o600)
