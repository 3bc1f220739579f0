"""A container registry on the cluster's LAN: both nodes pull from it only the layers that they lack."""

from dev.cluster.certificates import write_file
from dev.cluster.commands import succeeds
from dev.cluster.layout import CACHE, REGISTRY, STATE
from dev.cluster.processes import Part, ensure_running, wait_until_ready

_CONFIGURATION = STATE / "registry.yaml"


def ensure_registry() -> str:
    """Start the registry; what it holds is kept in the cache over ``down``."""
    write_file(_CONFIGURATION, _YAML)
    part = registry()
    started = ensure_running(part)
    wait_until_ready(
        part,
        lambda: succeeds(["curl", "--silent", "--fail", "--max-time", "2", f"http://{REGISTRY}/v2/"]),
        timeout_seconds=30,
        advice=f"is {REGISTRY} taken by another program?",
    )
    return "started" if started else "already running"


def registry() -> Part:
    """Return the registry."""
    return Part("registry", ("/usr/bin/docker-registry", "serve", str(_CONFIGURATION)), configuration=(_CONFIGURATION,))


_YAML = f"""\
version: 0.1
log: {{level: warn, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: "{CACHE / "images" / "registry"}"}}
http: {{addr: "{REGISTRY}"}}
"""
