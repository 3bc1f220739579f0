"""A person with one of Kubernetes' own roles in one namespace, as an administrator would make him."""

from pathlib import Path

import yaml

from tests.e2e.kubectl import Kubectl


def user_with_role(kubectl: Kubectl, role: str, directory: Path) -> Path:
    """Return the kubeconfig of a new user who is bound to a ClusterRole in kubectl's namespace, and to nothing else."""
    name, file = f"person-who-may-{role}", directory / f"{role}.kubeconfig"
    kubectl.run("create", "serviceaccount", name)
    kubectl.run("create", "rolebinding", name, f"--clusterrole={role}", f"--serviceaccount={kubectl.namespace}:{name}")
    token = kubectl.run("create", "token", name, "--duration=2h").strip()
    document = yaml.safe_load(kubectl.kubeconfig.read_text())
    user = document["contexts"][0]["context"]["user"]
    document["users"] = [{"name": user, "user": {"token": token}}]
    file.write_text(yaml.safe_dump(document))
    return file
