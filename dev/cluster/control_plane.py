"""The control plane, as processes of the host: etcd, API server, controller manager, scheduler, CoreDNS."""

import socket
from pathlib import Path

from dev.cluster import certificates as certs
from dev.cluster.commands import output_of, succeeds
from dev.cluster.layout import (
    API_PORT,
    CLUSTER_DOMAIN,
    HOST_ADDRESS,
    KUBECONFIG,
    LOGS,
    POD_CIDR,
    RUN,
    SERVICE_CIDR,
    STATE,
    binary,
)
from dev.cluster.processes import Part, cluster_processes, ensure_running, runs_as_configured, stop, wait_until_ready

# Not the ports of an etcd that the machine may run for itself.
ETCD_URL = "https://127.0.0.1:12379"
ETCD_PEER_URL = "https://127.0.0.1:12380"
MANIFESTS = Path(__file__).parent / "manifests"
# How soon pods leave a node that died. Kubernetes waits 300 s; tests of a lost node should not.
EVICTION_SECONDS = 20
NODE_GRACE_SECONDS = 20


def ensure_control_plane() -> str:
    """Start what does not run, in the order of dependence, and wait until the API server is ready."""
    RUN.mkdir(parents=True, exist_ok=True)
    if not (runs_as_configured(etcd()) and runs_as_configured(api_server())):
        # NB: a new etcd under a live API server breaks its watches ("Too large resource version"), and so everybody's.
        _stop_all([scheduler(), controller_manager(), api_server()])
    started = [etcd().name] if ensure_running(etcd()) else []
    wait_until_ready(
        etcd(),
        lambda: _listens("127.0.0.1", 12379),
        timeout_seconds=30,
        advice="its data may be damaged: `make cluster-down` and `make cluster` start from nothing",
    )
    if ensure_running(api_server()):
        started.append(api_server().name)
    wait_until_ready(
        api_server(),
        lambda: succeeds([*kubectl(), "get", "--raw", "/readyz"]),
        timeout_seconds=90,
        advice=f"look into {LOGS}/etcd.log too; `make cluster-down` and `make cluster` start from nothing",
    )
    for part in (controller_manager(), scheduler()):
        if ensure_running(part):
            started.append(part.name)
    apply(MANIFESTS / "rbac.yaml")
    return f"started {', '.join(started)}" if started else "already running"


def ensure_dns() -> str:
    """Start CoreDNS on the host's address; kubelet names it to every pod."""
    part = coredns()
    certs.write_file(_corefile(), _COREFILE)
    started = ensure_running(part)
    wait_until_ready(
        part,
        lambda: succeeds([*_curl(), "http://127.0.0.1:10054/ready"]),
        timeout_seconds=60,
        advice=f"is port 53 on {HOST_ADDRESS} taken? Does /etc/resolv.conf name a server?",
    )
    return "started" if started else "already running"


def kubectl() -> list[str]:
    """Return the words that begin a kubectl command as the cluster's administrator."""
    return [str(binary("kubectl")), "--kubeconfig", str(KUBECONFIG), "--request-timeout=20s"]


def apply(path: Path, text: str | None = None) -> None:
    """Apply a manifest file, or the text made from it."""
    if text is None:
        text = path.read_text()
    command = [*kubectl(), "apply", "--server-side", "--force-conflicts", "-f", "-"]
    output_of(path.name, command, stdin=text, advice="is the API server healthy? `make cluster-status` shows it")


def etcd() -> Part:
    """Return etcd. It does not wait for the disk: the cluster need not survive a power cut."""
    return Part(
        "etcd",
        (
            "/usr/bin/etcd",
            f"--data-dir={STATE / 'etcd'}",
            f"--listen-client-urls={ETCD_URL}",
            f"--advertise-client-urls={ETCD_URL}",
            f"--listen-peer-urls={ETCD_PEER_URL}",
            f"--initial-advertise-peer-urls={ETCD_PEER_URL}",
            f"--initial-cluster=default={ETCD_PEER_URL}",
            *_etcd_certificates(),
            *(f"--peer-{word.removeprefix('--')}" for word in _etcd_certificates()),
            "--unsafe-no-fsync",
            "--quota-backend-bytes=2147483648",
            "--auto-compaction-retention=10m",
            "--logger=zap",
        ),
        configuration=(certs.ETCD.certificate,),
    )


def _etcd_certificates() -> tuple[str, ...]:
    return (
        f"--cert-file={certs.ETCD.certificate}",
        f"--key-file={certs.ETCD.key}",
        f"--trusted-ca-file={certs.CA_CERTIFICATE}",
        "--client-cert-auth",
    )


def api_server() -> Part:
    """Return the API server."""
    identity = certs.API_SERVER_IDENTITY
    return Part(
        "kube-apiserver",
        (
            str(binary("kube-apiserver")),
            f"--etcd-servers={ETCD_URL}",
            f"--etcd-cafile={certs.CA_CERTIFICATE}",
            f"--etcd-certfile={certs.ETCD_CLIENT.certificate}",
            f"--etcd-keyfile={certs.ETCD_CLIENT.key}",
            f"--bind-address={HOST_ADDRESS}",
            f"--advertise-address={HOST_ADDRESS}",
            f"--secure-port={API_PORT}",
            f"--service-cluster-ip-range={SERVICE_CIDR}",
            f"--client-ca-file={certs.CA_CERTIFICATE}",
            f"--tls-cert-file={identity.certificate}",
            f"--tls-private-key-file={identity.key}",
            f"--kubelet-certificate-authority={certs.CA_CERTIFICATE}",
            f"--kubelet-client-certificate={certs.KUBELET_CLIENT.certificate}",
            f"--kubelet-client-key={certs.KUBELET_CLIENT.key}",
            # NB: by default the node's name is tried first, which no DNS knows, and `kubectl logs` fails.
            "--kubelet-preferred-address-types=InternalIP",
            f"--service-account-issuer=https://kubernetes.default.svc.{CLUSTER_DOMAIN}",
            f"--service-account-key-file={certs.SERVICE_ACCOUNT_PUBLIC_KEY}",
            f"--service-account-signing-key-file={certs.SERVICE_ACCOUNT_KEY}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            # Webhooks and aggregated APIs are called by pod address: the host has no kube-proxy.
            "--enable-aggregator-routing=true",
            f"--default-not-ready-toleration-seconds={EVICTION_SECONDS}",
            f"--default-unreachable-toleration-seconds={EVICTION_SECONDS}",
        ),
        configuration=(identity.certificate,),
    )


def controller_manager() -> Part:
    """Return the controller manager."""
    return Part(
        "kube-controller-manager",
        (
            str(binary("kube-controller-manager")),
            f"--kubeconfig={certs.CONTROLLER_MANAGER.kubeconfig}",
            f"--root-ca-file={certs.CA_CERTIFICATE}",
            f"--service-account-private-key-file={certs.SERVICE_ACCOUNT_KEY}",
            "--use-service-account-credentials=true",
            f"--cluster-cidr={POD_CIDR}",
            f"--service-cluster-ip-range={SERVICE_CIDR}",
            "--allocate-node-cidrs=false",
            f"--node-monitor-grace-period={NODE_GRACE_SECONDS}s",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            "--kube-api-qps=300",
            "--kube-api-burst=600",
        ),
        configuration=(certs.CONTROLLER_MANAGER.kubeconfig,),
    )


def scheduler() -> Part:
    """Return the scheduler."""
    return Part(
        "kube-scheduler",
        (
            str(binary("kube-scheduler")),
            f"--kubeconfig={certs.SCHEDULER.kubeconfig}",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            "--kube-api-qps=300",
            "--kube-api-burst=600",
            # On a cluster some seconds old a pod was seen to wait although its claim had been bound: the scheduler had
            # missed the news, and looks again by itself only after five minutes.
            "--pod-max-in-unschedulable-pods-duration=15s",
        ),
        configuration=(certs.SCHEDULER.kubeconfig,),
    )


def coredns() -> Part:
    """Return CoreDNS."""
    return Part(
        "coredns",
        (str(binary("coredns")), "-conf", str(_corefile())),
        configuration=(_corefile(), certs.COREDNS.kubeconfig),
    )


def _corefile() -> Path:
    return STATE / "Corefile"


# A name that is not there yet is asked again within a second: the ranks of a gang look for each other as they start.
_COREFILE = f"""\
. {{
    bind {HOST_ADDRESS}
    errors
    ready 127.0.0.1:10054
    kubernetes {CLUSTER_DOMAIN} in-addr.arpa {{
        kubeconfig {certs.COREDNS.kubeconfig} finetune
        endpoint_pod_names
        fallthrough in-addr.arpa
        ttl 1
    }}
    forward . /etc/resolv.conf
    cache {{
        success 9984 5
        denial 9984 1
    }}
}}
"""


def _listens(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=1).close()
    except OSError:
        return False
    return True


def _curl() -> list[str]:
    return ["curl", "--silent", "--fail", "--max-time", "2", "--output", "/dev/null"]


def _stop_all(parts: list[Part]) -> None:
    names = {part.name for part in parts}
    stop(process for process in cluster_processes() if process.part in names)
