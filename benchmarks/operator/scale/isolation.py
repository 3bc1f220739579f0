"""A network of its own for the benchmark: no port, address or route of the machine is touched.

Every address of `POD_NETWORK` belongs to the loopback device in there, so that one server answers for all fake pods.
"""

import os
import sys

POD_NETWORK = "10.1.0.1/16"
_INSIDE = "FINETUNE_BENCHMARK_NETWORK"
_SET_UP = (
    "ip link set lo up",
    f"ip address add {POD_NETWORK} dev lo",
    # The API server looks for its address on the interface of the default route.
    "ip route add default dev lo",
    'exec "$@"',
)


def enter_own_network(module: str) -> None:
    """Start this program again in a fresh network namespace, unless it runs in one already.

    Args:
        module: the module that `python -m` runs.

    Raises:
        OSError: unshare (util-linux) is not there.
    """
    if os.environ.get(_INSIDE):
        return
    # As root the user stays who he is; others become root in a user namespace, which may configure the new network.
    new_namespaces = ["--net"] if os.geteuid() == 0 else ["--net", "--map-root-user"]
    command = [sys.executable, "-m", module, *sys.argv[1:]]
    shell = ["sh", "-c", " && ".join(_SET_UP), "sh", *command]
    os.execvpe("unshare", ["unshare", *new_namespaces, *shell], os.environ | {_INSIDE: "1"})
