# SPDX-License-Identifier: Apache-2.0
"""A MONAI Label server on this machine, for the length of a ``with`` block."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

HOST = "127.0.0.1"
START_SECONDS, LIFE_SECONDS, REQUEST_SECONDS = 300, 5400, 300


class Server(NamedTuple):
    """Where the server listens and what it writes."""

    url: str
    log: Path

    def infer(self, model: str, image: str, params: Mapping[str, Any]) -> bytes:
        """The answer's image file.

        Args:
            model: name of the bundle.
            image: id of a study, its file's name without the ending.
            params: of the request.

        Raises:
            urllib.error.HTTPError: where the server refuses.
        """
        query = urllib.parse.urlencode({"image": image, "output": "image"})
        body = urllib.parse.urlencode({"params": json.dumps(dict(params))}).encode()
        with urllib.request.urlopen(f"{self.url}/infer/{model}?{query}", body, timeout=REQUEST_SECONDS) as answer:
            return answer.read()

    def info(self) -> dict[str, Any]:
        """What the server says of itself and its models."""
        with urllib.request.urlopen(f"{self.url}/info/", timeout=REQUEST_SECONDS) as answer:
            return json.load(answer)


@contextmanager
def label_server(
    python: Path, bundles: Mapping[str, Path], studies: Path, folder: Path, environment: Mapping[str, str]
) -> Iterator[Server]:
    """Start ``monailabel start_server`` with packed bundles, and end it with the block.

    Args:
        python: of MONAI Label's environment.
        bundles: folders of packed bundles by name.
        studies: folder of images.
        folder: empty, for the app and the log.
        environment: variables of the process.

    Raises:
        RuntimeError: where it does not start, with the end of its log.
    """
    monailabel = [str(python), "-m", "monailabel.main"]
    command = [*monailabel, "apps", "--download", "--name", "monaibundle", "--output", str(folder / "apps")]
    subprocess.run(command, check=True, capture_output=True, env=environment, cwd=folder, timeout=START_SECONDS)
    app, log = folder / "apps" / "monaibundle", folder / "server.log"
    for name, bundle in bundles.items():
        shutil.copytree(bundle, app / "model" / name)
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    command = [*monailabel, "start_server", "--app", str(app), "--studies", str(studies), "--host", HOST]
    command += ["--port", str(port), "--conf", "models", ",".join(bundles), "--conf", "skip_trainers", "true"]
    command += ["--conf", "zoo_source", "ngc"]
    # Ends by itself where this process is killed before it can end it.
    limit = ["timeout", str(LIFE_SECONDS)] if shutil.which("timeout") else []
    with open(log, "wb") as stream:
        process = subprocess.Popen(
            [*limit, *command], stdout=stream, stderr=subprocess.STDOUT, env=environment, cwd=folder,
            start_new_session=True,
        )  # fmt: skip
        try:
            server = Server(f"http://{HOST}:{port}", log)
            _wait(server, process)
            yield server
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _wait(server: Server, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < end:
        try:
            server.info()
        except (urllib.error.URLError, ConnectionError):
            time.sleep(1)
        else:
            return
    raise RuntimeError(f"MONAI Label did not start:\n{server.log.read_text(errors='replace')[-3000:]}")
