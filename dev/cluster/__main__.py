"""Command line: ``python3 -m dev.cluster up | down | status | programs | images | load | crash``."""

import argparse
import os
import socket
import sys
import time
from pathlib import Path

from dev.cluster import lifecycle
from dev.cluster.failure import ClusterError
from dev.cluster.images import load_archive
from dev.cluster.layout import NODES
from dev.cluster.remains import crash, take_down
from dev.cluster.status import show_status


def main() -> int:
    """Run one verb and return the exit status."""
    arguments = _parser().parse_args()
    if os.geteuid() != 0:
        print("The embedded cluster makes namespaces, mounts and control groups: run it as root.", file=sys.stderr)
        return 2
    try:
        return _run(arguments)
    except ClusterError as error:
        print(error.report(), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Interrupted. What is up stays up: run the same again to go on, or `make cluster-down`.", file=sys.stderr)
        return 130


def _run(arguments: argparse.Namespace) -> int:
    if arguments.verb == "status":
        return 0 if show_status() else 1
    with _only_one():
        if arguments.verb == "up":
            lifecycle.up(arguments.gpus, arguments.additions)
        elif arguments.verb == "down":
            take_down()
            print("The cluster is down. Nothing of it is left but the cache.")
        elif arguments.verb == "programs":
            lifecycle.programs(arguments.additions)
        elif arguments.verb == "images":
            lifecycle.images()
        elif arguments.verb == "crash":
            crash(next(node for node in NODES if node.name == arguments.node))
            print(f"{arguments.node} is dead. `make cluster` brings it back.")
        else:
            for archive in arguments.archive:
                load_archive(archive)
                print(f"loaded {archive} into both nodes")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m dev.cluster", description="a two-node Kubernetes on this machine")
    verbs = parser.add_subparsers(dest="verb", required=True)
    up = verbs.add_parser("up", help="bring it up with both images loaded; what is up already is left alone")
    up.add_argument("--gpus", type=int, default=0, metavar="N", help="GPUs that each node claims to have")
    verbs.add_parser("down", help="take it down and leave nothing behind but the cache")
    verbs.add_parser("status", help="what of it is running; exit status 0 when all of it is")
    programs = verbs.add_parser("programs", help="build its programs into the cache, and nothing else")
    for parser_with_additions in (up, programs):
        parser_with_additions.add_argument(
            "--with",
            dest="additions",
            action="append",
            default=[],
            choices=sorted(lifecycle.ADDITIONS),
            help="install this besides; what an earlier run has installed stays",
        )
    verbs.add_parser("images", help="build both images and load them into a cluster that is up")
    crash_parser = verbs.add_parser("crash", help="kill all that runs on a node, as if its power had been cut")
    crash_parser.add_argument("node", choices=[node.name for node in NODES])
    load = verbs.add_parser("load", help="import image archives into both nodes")
    load.add_argument("archive", type=Path, nargs="+")
    return parser


def _only_one() -> socket.socket:
    """Return a lock that ends with this process: the abstract socket leaves no file behind."""
    lock = socket.socket(socket.AF_UNIX)
    said = False
    while True:
        try:
            lock.bind("\0finetune-cluster")
        except OSError:
            if not said:
                print("Another `python3 -m dev.cluster` is at work on this machine: waiting for it to end.")
            said = True
            time.sleep(0.5)
        else:
            return lock


if __name__ == "__main__":
    sys.exit(main())
