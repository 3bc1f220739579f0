"""Kubeflow's training-operator, for those who ask for it: `up --with training-operator`.

It runs as its users run it: from the manifests of its own module, as a pod whose webhook the API server calls. An
overlay changes what this cluster cannot have: the image is made here from the built program.
"""

import io
import json
import os
import tarfile
import tempfile
from pathlib import Path

from dev.cluster.binaries import TRAINING_OPERATOR
from dev.cluster.certificates import write_file
from dev.cluster.commands import output_of, succeeds
from dev.cluster.control_plane import apply, kubectl
from dev.cluster.images import forget_older, has_image, load_archive
from dev.cluster.layout import IMAGE_PREFIX, NODES, STATE
from dev.cluster.tiny_image import TINY_IMAGE, docker_archive

PART = "training-operator"
NAMESPACE = "kubeflow"
MODULE = "github.com/kubeflow/training-operator"
READY_SECONDS = 120
_OVERLAY = STATE / "training-operator"


def ensure_training_operator() -> str:
    """Install it, or bring it up to date, and wait until its webhook answers."""
    loaded = _ensure_image()
    write_file(_OVERLAY / "initContainer.yaml", _INIT_CONTAINER)
    write_file(_OVERLAY / "kustomization.yaml", _kustomization())
    apply(_OVERLAY / "kustomization.yaml", output_of(PART, [*kubectl(), "kustomize", str(_OVERLAY)]))
    deployment = [*kubectl(), "--namespace", NAMESPACE, "rollout", "status", "deployment/training-operator"]
    advice = f"look at it: kubectl --namespace {NAMESPACE} describe pods"
    output_of(PART, [*deployment, f"--timeout={READY_SECONDS}s", "--request-timeout=0"], advice=advice)
    forget_older(image_reference())
    return f"{loaded}, ready"


def is_installed() -> bool:
    """Return whether this cluster was asked for it."""
    return (_OVERLAY / "kustomization.yaml").exists()


def is_ready() -> bool:
    """Return whether its pod serves."""
    deployment = ["--namespace", NAMESPACE, "wait", "deployment/training-operator"]
    return succeeds([*kubectl(), *deployment, "--for=condition=Available", "--timeout=0s"])


def image_reference() -> str:
    """Return the name of its image; the tag is the digest of what the program was built from."""
    return f"{IMAGE_PREFIX}/training-operator:{TRAINING_OPERATOR.directory.name.removeprefix('training-operator-')}"


def training_operator_archive(program: bytes) -> bytes:
    """Return an image with nothing but the program, under the name by which the manifests start it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("manager")
        entry.size, entry.mode = len(program), 0o755
        archive.addfile(entry, io.BytesIO(program))
    return docker_archive(image_reference(), buffer.getvalue(), {"Entrypoint": ["/manager"], "WorkingDir": "/"})


def _ensure_image() -> str:
    if all(has_image(node, image_reference()) for node in NODES):
        return "image already there"
    program = TRAINING_OPERATOR.directory / TRAINING_OPERATOR.programs[0]
    with tempfile.NamedTemporaryFile(suffix=".tar") as file:
        file.write(training_operator_archive(program.read_bytes()))
        file.flush()
        load_archive(Path(file.name))
    return "image imported"


def _kustomization() -> str:
    """Return what is changed of its own manifests: the image, the readiness probe, the init containers."""
    container = "/spec/template/spec/containers/0"
    volume = {"name": "init-container", "configMap": {"name": "pytorch-init-container"}}
    mount = {"name": "init-container", "mountPath": "/etc/config"}
    patch = [
        {"op": "replace", "path": f"{container}/image", "value": image_reference()},
        {"op": "add", "path": f"{container}/imagePullPolicy", "value": "Never"},
        {"op": "replace", "path": f"{container}/readinessProbe/initialDelaySeconds", "value": 1},
        {"op": "replace", "path": f"{container}/readinessProbe/periodSeconds", "value": 1},
        {"op": "add", "path": f"{container}/volumeMounts/-", "value": mount},
        {"op": "add", "path": "/spec/template/spec/volumes/-", "value": volume},
    ]
    files = {"name": "pytorch-init-container", "namespace": NAMESPACE, "files": ["initContainer.yaml"]}
    return json.dumps(
        {
            "resources": [_relative_to_overlay(module_directory() / "manifests" / "overlays" / "standalone")],
            "configMapGenerator": [files],
            "patches": [
                {"target": {"kind": "Deployment", "name": "training-operator"}, "patch": json.dumps(patch)},
            ],
        },
        indent=1,
    )


def _relative_to_overlay(directory: Path) -> str:
    # NB: kustomize takes a base from anywhere, but not by an absolute path.
    return os.path.relpath(directory.resolve(), _OVERLAY.resolve())


def module_directory() -> Path:
    """Return where Go keeps the module's sources, which its manifests are part of."""
    directory = TRAINING_OPERATOR.source
    download = ["go", "-C", str(directory), "mod", "download", "-json", MODULE]
    advice = "can the Go module proxy be reached? then run it again"
    return Path(json.loads(output_of(PART, download, advice=advice))["Dir"])


# The init container of a worker, which waits until the master's name resolves; busybox looks in no search domain by
# itself. NB: the training-operator's own template names an image of a public registry, and has no securityContext, so
# that namespaces of the `restricted` Pod Security Standard refuse every worker.
_INIT_CONTAINER = f"""\
- name: init-pytorch
  image: {TINY_IMAGE}
  imagePullPolicy: Never
  securityContext:
    allowPrivilegeEscalation: false
    capabilities: {{drop: [ALL]}}
  command:
  - sh
  - -c
  - |
    trap "exit 1" TERM
    set -- $(cat /etc/resolv.conf)
    until [ $1 = search ]; do shift; done
    i=0
    until nslookup {{{{.MasterAddr}}}}.$2; do
      i=$((i + 1))
      [ $i -lt {{{{.MaxTries}}}} ] || exit 1
      sleep 2
    done
"""
