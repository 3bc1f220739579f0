"""Programs built once from their Go modules, into a cache keyed by version."""

import hashlib
import os
import shutil
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

from dev.cluster.commands import run_logged
from dev.cluster.layout import (
    BIN,
    CACHE,
    COREDNS_VERSION,
    HELM_VERSION,
    KUBERNETES_VERSION,
    KUEUE_VERSION,
    KWOK_VERSION,
    LOCAL_PATH_PROVISIONER_VERSION,
    TRAINING_OPERATOR_VERSION,
)

# Each build keeps every core busy: more than two at once only take memory from each other.
_two_at_once = threading.BoundedSemaphore(2)
MODULES = Path(__file__).parent / "go"


@dataclass(frozen=True)
class Build:
    """Programs that are built together from one module under ``go/``.

    Attributes:
        module: folder under ``go/``.
        version: the version that its go.mod asks for.
        packages: Go packages; the program of each has the name of its last element.
        stamps: variables that tell the programs their version, which `go build` does not know from a tag.
    """

    module: str
    version: str
    packages: tuple[str, ...]
    stamps: tuple[str, ...] = ()

    @property
    def programs(self) -> tuple[str, ...]:
        """Names of the programs."""
        return tuple(self.module if package == "." else package.rpartition("/")[2] for package in self.packages)

    @property
    def source(self) -> Path:
        """Where its go.mod lies."""
        return MODULES / self.module

    @property
    def directory(self) -> Path:
        """Where this very build lives: the version, and a digest of what it is built from."""
        digest = hashlib.sha256(repr((self.packages, self.stamps)).encode())
        for path in sorted(self.source.iterdir()):
            digest.update(path.read_bytes())
        return BIN / f"{self.module}-{self.version}-{digest.hexdigest()[:8]}"


def _kubernetes_stamps() -> tuple[str, ...]:
    major, minor, _ = KUBERNETES_VERSION.removeprefix("v").split(".")
    variables = {"gitVersion": KUBERNETES_VERSION, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    return tuple(f"k8s.io/component-base/version.{name}={value}" for name, value in variables.items())


_KUBERNETES_PROGRAMS = (
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "kubectl",
)
BUILDS = (
    Build(
        "kubernetes",
        KUBERNETES_VERSION,
        tuple(f"k8s.io/kubernetes/cmd/{name}" for name in _KUBERNETES_PROGRAMS),
        _kubernetes_stamps(),
    ),
    Build("coredns", COREDNS_VERSION, (".",)),
    Build("local-path-provisioner", LOCAL_PATH_PROVISIONER_VERSION, ("github.com/rancher/local-path-provisioner",)),
    Build(
        "helm",
        HELM_VERSION,
        ("helm.sh/helm/v3/cmd/helm",),
        (f"helm.sh/helm/v3/internal/version.version={HELM_VERSION}",),
    ),
)

# Fake nodes for the scale benchmark, which builds it when it runs: the cluster itself has no use for it.
KWOK = Build(
    "kwok",
    KWOK_VERSION,
    ("sigs.k8s.io/kwok/cmd/kwok",),
    (f"sigs.k8s.io/kwok/pkg/consts.Version={KWOK_VERSION}",),
)
# The queue that a test installs for itself, and builds when it runs.
KUEUE = Build("kueue", KUEUE_VERSION, ("sigs.k8s.io/kueue/cmd/kueue",))
# Not part of the cluster unless asked for.
TRAINING_OPERATOR = Build(
    "training-operator", TRAINING_OPERATOR_VERSION, ("github.com/kubeflow/training-operator/cmd/training-operator.v1",)
)


def ensure_built(build: Build) -> str:
    """Build the programs unless the cache has them, and link them into BIN under their plain names."""
    directory = build.directory
    built = not directory.exists()
    if built:
        with _two_at_once:
            _compile(build, directory)
    for program in build.programs:
        _link(BIN / program, directory / program)
    return f"{'built' if built else 'already built'} {build.version}"


def _compile(build: Build, directory: Path) -> None:
    """Compile into a temporary folder and rename it: the cache holds a whole build or none."""
    BIN.mkdir(parents=True, exist_ok=True)
    for abandoned in BIN.glob(f".{build.module}-*"):
        shutil.rmtree(abandoned)
    temporary = Path(tempfile.mkdtemp(prefix=f".{build.module}-", dir=BIN))
    flags = " ".join(["-s -w", *(f"-X {stamp}" for stamp in build.stamps)])
    try:
        run_logged(
            build.module,
            # NB: -mod=readonly is the default and what keeps the build at the versions and digests of go.sum.
            ["nice", "-n", "5", "go", "build", "-trimpath", "-ldflags", flags, "-o", f"{temporary}/", *build.packages],
            cwd=build.source,
            log=CACHE / "logs" / f"build-{build.module}.log",
            advice="is Go 1.26 or newer on the PATH, and can the Go module proxy be reached? then run it again",
            environment={"CGO_ENABLED": "0", "GOFLAGS": os.environ.get("GOFLAGS", "")},
        )
        temporary.chmod(0o755)
        temporary.rename(directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _link(link: Path, target: Path) -> None:
    if link.is_symlink() and link.readlink() == target:
        return
    temporary = link.with_name(f".{link.name}.new")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(link)
