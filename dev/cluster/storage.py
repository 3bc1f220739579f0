"""Volumes: local-path-provisioner as a process of the host, with the classes ``shared-fs`` and ``network-disk``."""

import json
from pathlib import Path

from dev.cluster import certificates as certs
from dev.cluster.certificates import write_file
from dev.cluster.control_plane import MANIFESTS, apply
from dev.cluster.layout import NODES, STATE, binary
from dev.cluster.processes import Part, ensure_running
from dev.cluster.tiny_image import TINY_IMAGE

VOLUMES = STATE / "volumes"


def ensure_storage() -> str:
    """Apply the storage classes and start the provisioner."""
    apply(MANIFESTS / "storage.yaml")
    write_file(_configuration(), _classes())
    write_file(_helper_pod(), _HELPER_POD)
    return "started" if ensure_running(provisioner()) else "already running"


def provisioner() -> Part:
    """Return the provisioner. Its log line about in-cluster configuration only says that it does not run in a pod."""
    return Part(
        "local-path-provisioner",
        (
            str(binary("local-path-provisioner")),
            "start",
            f"--config={_configuration()}",
            f"--kubeconfig={certs.LOCAL_PATH_PROVISIONER.kubeconfig}",
            "--namespace=local-path-storage",
            "--configmap-name=local-path-config",
            "--service-account-name=local-path-provisioner",
            f"--helper-image={TINY_IMAGE}",
            f"--helper-pod-file={_helper_pod()}",
        ),
        configuration=(_configuration(), _helper_pod(), certs.LOCAL_PATH_PROVISIONER.kubeconfig),
    )


def _classes() -> str:
    disks = [{"node": node.name, "paths": [str(VOLUMES / "network-disk" / node.name)]} for node in NODES]
    classes = {
        "shared-fs": {"sharedFileSystemPath": str(VOLUMES / "shared-fs")},
        "network-disk": {"nodePathMap": disks},
    }
    return json.dumps({"storageClassConfigs": classes}, indent=1)


def _configuration() -> Path:
    return STATE / "local-path-provisioner.json"


def _helper_pod() -> Path:
    return STATE / "local-path-helper-pod.yaml"


_HELPER_POD = f"""\
apiVersion: v1
kind: Pod
metadata: {{name: local-path-helper}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {{name: local-path-helper, image: "{TINY_IMAGE}", imagePullPolicy: Never}}
"""
