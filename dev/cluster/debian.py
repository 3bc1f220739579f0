"""Debian packages that the cluster is made from. Their own services are neither started nor enabled."""

import shutil
from pathlib import Path

from dev.cluster.commands import output_of, run_logged
from dev.cluster.failure import ClusterError
from dev.cluster.layout import CACHE

PART = "Debian packages"
PACKAGES = (
    "buildah",
    "busybox-static",
    "ca-certificates",
    "containerd",
    "containernetworking-plugins",
    "curl",
    "debootstrap",
    "docker-registry",
    "etcd-server",
    "iproute2",
    "iptables",
    "openssl",
    "procps",
    "prometheus",
    "runc",
    "skopeo",
    "util-linux",
)
# Packages that bring a service of the same or this name; a machine with systemd would start it at its next boot.
SERVICES = {
    "containerd": "containerd",
    "docker-registry": "docker-registry",
    "etcd-server": "etcd",
    "prometheus": "prometheus",
}
CNI_PLUGINS = Path("/usr/lib/cni")
# Debian's way to say that a package's installation must not start its services.
_POLICY = Path("/usr/sbin/policy-rc.d")


def ensure_packages() -> str:
    """Install the packages that are missing."""
    missing = missing_packages()
    if not missing:
        return "already there"
    if shutil.which("apt-get") is None:
        raise ClusterError(PART, f"apt-get is not there, and these are missing: {', '.join(missing)}", "use Debian 12")
    log = CACHE / "logs" / "apt.log"
    advice = "can Debian's package mirror be reached, and is no other apt-get running?"
    with_lock = ["-o", "DPkg::Lock::Timeout=120"]
    run_logged(PART, ["apt-get", *with_lock, "update", "-q"], log=log, advice=advice)
    own_policy = not _POLICY.exists()
    if own_policy:
        _POLICY.write_text("#!/bin/sh\nexit 101\n")
        _POLICY.chmod(0o755)
    try:
        command = ["apt-get", *with_lock, "install", "-y", "-q", "--no-install-recommends", *missing]
        silent = {"DEBIAN_FRONTEND": "noninteractive"}
        # A package installation that was cut short has to be finished before the next one.
        run_logged(PART, ["dpkg", "--configure", "-a"], log=log, advice=advice, environment=silent, may_outlive_us=True)
        run_logged(PART, command, log=log, advice=advice, environment=silent, may_outlive_us=True)
    finally:
        if own_policy:
            _POLICY.unlink()
    _disable_services(missing)
    return f"installed {len(missing)}"


def missing_packages() -> list[str]:
    """Return those of PACKAGES that are not installed."""
    listed = output_of(PART, ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n"], advice="use Debian 12")
    installed = {line.split()[0] for line in listed.splitlines() if line.endswith(" installed")}
    return [package for package in PACKAGES if package not in installed]


def _disable_services(installed: list[str]) -> None:
    if not Path("/run/systemd/system").exists():
        return
    for package in installed:
        if service := SERVICES.get(package):
            output_of(PART, ["systemctl", "disable", "--quiet", service])
