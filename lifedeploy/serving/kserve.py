"""The program in a KServe container: ``python -m lifedeploy.serving.kserve --package DIR``.

It answers KServe's protocol, version 2, over HTTP and gRPC, on the address that it is given and on no other. Nothing
here needs torch.
"""

from __future__ import annotations

import sys

# ``python -m`` puts the current folder first on the path, where somebody else's numpy.py may lie.
if __name__ == "__main__" and not sys.flags.safe_path:
    del sys.path[0]

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from lifedeploy.errors import LifedeployError
from lifedeploy.optional import require
from lifedeploy.serving.kserve_package import opened

LOCAL = "127.0.0.1"
HTTP_PORT, GRPC_PORT = 8080, 8081
_MOST_PORT = 65_535
_MOST_CORES = 4096


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve a package until a signal ends it."""
    options = _parser().parse_args(arguments)
    # kserve reads the command line too when it is imported, and takes what it knows of it.
    sys.argv[1:] = []
    try:
        served = opened(options.package)
        require("kserve", extra="kserve")
        from lifedeploy.serving import kserve_server

        kserve_server.serve(
            served, host=options.host, http_port=options.http_port, grpc_port=options.grpc_port, cores=options.cores
        )
    except LifedeployError as error:
        hint = f"\nhint: {error.hint}" if error.hint else ""
        sys.exit(f"error: {error.message}{hint}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lifedeploy.serving.kserve", allow_abbrev=False)
    add = parser.add_argument
    add("--package", type=Path, required=True, metavar="DIR", help="what lifedeploy package --for kserve wrote")
    add("--host", default=LOCAL, help="the address to listen on (%(default)s: this machine alone)")
    add("--http-port", type=_whole(_MOST_PORT), default=HTTP_PORT, metavar="N", help="%(default)s")
    add("--grpc-port", type=_whole(_MOST_PORT), default=GRPC_PORT, metavar="N", help="%(default)s")
    add("--cores", type=_whole(_MOST_CORES), metavar="N", help="CPUs to use; in a container, as many as its limit says")
    return parser


def _whole(most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or not 1 <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 to {most}")
        return int(text)

    return number


if __name__ == "__main__":
    main()
