"""Measures `shiftvit serve`: its rate over HTTP as a share of the runtime's own, its latency, and its overload.

    python benchmarks/serve.py                       the packaged model, 32 pixels
    python benchmarks/serve.py shiftvit_tiny_r2      a preset with random weights, which are as fast as trained ones

It measures the runtime alone, in this process, and the server, in another, in turn on the same cores, which also run
the clients. Every request is one encoded picture. The result goes to benchmarks/results/serve-MODEL-DATE.json.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import io
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rates import measure_rate
from record import write_record
from shiftvit.bundle.stored.find import PRETRAINED
from shiftvit.bundle.stored.published import find_evaluation
from shiftvit.inference.runtimes import load_graph

ROUNDS = 5
# Seconds of a measurement, and clients: enough to fill batches, and few enough that many batches end in time.
FAST, SLOW = (6, 64), (24, 16)
BATCHES = (1, 4, 16, 64)


def measure_served(port: int, content: bytes, folder: Path, seconds: int, clients: int) -> float:
    """Returns answers per second to clients that send a request as soon as the last one is answered.

    The clients are wrk's where it is installed, else those of `Load`, whose own work is a fifth of the server's.
    """
    if shutil.which("wrk") is None:
        load = Load(port, content)
        rate = asyncio.run(load.closed(clients, seconds))
        assert set(load.statuses) == {200}, load.statuses
        return rate
    (folder / "picture").write_bytes(content)
    script = folder / "post.lua"
    script.write_text(f'wrk.method = "POST"\nwrk.body = io.open("{folder}/picture", "rb"):read("*a")\n')
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}", "--timeout", "30", "-s", str(script)]
    said = subprocess.run(
        [*command, f"http://127.0.0.1:{port}/v1/classify"], capture_output=True, text=True, check=True
    )
    assert "Non-2xx" not in said.stdout, said.stdout
    return float(re.search(r"Requests/sec:\s+([\d.]+)", said.stdout)[1])  # type: ignore[index]


class Load:
    """Clients on the loopback address, each with a connection of its own."""

    def __init__(self, port: int, content: bytes) -> None:
        self.port = port
        head = f"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
        self.request = head.encode() + content
        self.seconds: list[float] = []
        self.statuses: collections.Counter[int] = collections.Counter()

    async def ask(self, line: list[Any]) -> None:
        began = time.perf_counter()
        line[1].write(self.request)
        try:
            head = await line[0].readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):  # the server closes what was idle for long
            line[:] = await asyncio.open_connection("127.0.0.1", self.port)
            line[1].write(self.request)
            head = await line[0].readuntil(b"\r\n\r\n")
        reader = line[0]
        found = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        await reader.readexactly(int(found[1]) if found else 0)
        status = int(head.split(b" ", 2)[1])
        self.statuses[status] += 1
        if status == 200:
            self.seconds.append(time.perf_counter() - began)

    async def _connect(self, count: int) -> list[Any]:
        return [[*await asyncio.open_connection("127.0.0.1", self.port)] for _ in range(count)]

    async def closed(self, clients: int, seconds: float) -> float:
        """Each client sends a request as soon as the last one is answered. Returns answers per second."""
        lines = await self._connect(clients)
        end = time.perf_counter() + seconds

        async def client(line: Any) -> None:
            while time.perf_counter() < end:
                await self.ask(line)

        began = time.perf_counter()
        await asyncio.gather(*map(client, lines))
        took = time.perf_counter() - began
        for _, writer in lines:
            writer.close()
        return self.statuses[200] / took

    async def open(self, rate: float, seconds: float, most: int = 400) -> None:
        """Sends requests at a constant rate on at most `most` connections, without waiting for answers."""
        free = collections.deque(await self._connect(most))
        tasks = set()
        began = time.perf_counter()
        for index in range(int(rate * seconds)):
            await asyncio.sleep(max(0, began + index / rate - time.perf_counter()))
            if not free:  # every connection waits for an answer
                continue
            line = free.popleft()
            task = asyncio.create_task(self.ask(line))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            task.add_done_callback(lambda _, line=line: free.append(line))  # type: ignore[misc]
        await asyncio.gather(*tasks)
        for _, writer in free:
            writer.close()


def wait_until_idle(port: int) -> None:
    """Waits for the answers to clients that have left."""
    while True:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
            waiting = re.search(rb"shiftvit_queue_images\{.*\} (\S+)", answer.read())
        if waiting and float(waiting[1]) == 0:
            return
        time.sleep(0.1)


def measure_memory(process: subprocess.Popen[str]) -> float | None:
    """Returns the resident memory of a process in MB, or None on other systems than Linux."""
    status = Path(f"/proc/{process.pid}/status")
    if not status.is_file():
        return None
    return int(re.search(r"VmRSS:\s+(\d+)", status.read_text())[1]) / 1024  # type: ignore[index]


def compute_percentile(seconds: list[float], share: float) -> float:
    """Returns a percentile in milliseconds."""
    return round(float(np.quantile(seconds, share)) * 1000, 2)


async def run_overload(process: subprocess.Popen[str], port: int, content: bytes, rate: float) -> dict[str, Any]:
    """Sends requests at a rate for ten seconds, and then a few one after another; returns what happened."""
    load, before, most = Load(port, content), measure_memory(process), 0.0
    task = asyncio.create_task(load.open(rate, 10))
    while not task.done():
        await asyncio.sleep(0.25)
        most = max(most, measure_memory(process) or 0.0)
    await task
    await asyncio.sleep(1)
    after = Load(port, content)
    (line,) = await after._connect(1)
    for _ in range(20):
        await after.ask(line)
    line[1].close()
    return {
        "rate": round(rate, 1),
        "statuses": {str(status): count for status, count in sorted(load.statuses.items())},
        "memory_before_mb": before and round(before, 1),
        "memory_most_mb": before and round(most, 1),
        "memory_after_mb": before and round(measure_memory(process) or 0.0, 1),
        "a_second_later": {
            "statuses": {str(status): count for status, count in after.statuses.items()},
            "median_milliseconds": compute_percentile(after.seconds, 0.5),
        },
    }


def make_picture(size: tuple[int, int]) -> bytes:
    """Returns a sample picture if the model's input has its size, else a JPEG of 500x375 pixels."""
    samples = sorted((PRETRAINED / "samples").glob("*/*.png"))
    if size == (32, 32):
        return samples[0].read_bytes()
    tiles = [np.asarray(Image.open(path).convert("RGB")) for path in samples[:4]]
    whole = np.concatenate([np.concatenate(tiles[:2], 1), np.concatenate(tiles[2:], 1)])
    stream = io.BytesIO()
    Image.fromarray(whole).resize((500, 375), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def make_model(preset: str, folder: Path) -> Path:
    """Returns a bundle of a preset with random weights and its graph, which takes 224 pixels."""
    from shiftvit import Bundle, ShiftViT
    from shiftvit.exports.export import pack

    network = ShiftViT.from_preset(preset, image_shape=(224, 224, 3), num_classes=1000)
    labels = tuple(f"class {index}" for index in range(1000))
    Bundle.from_model(network, labels, find_evaluation(224)).save(folder / "plain")
    return pack(folder / "plain", folder / preset, onnx=True)


def measure(model: str | Path, folder: Path) -> dict[str, Any]:
    graph = load_graph(model, "onnxruntime")
    content = make_picture(graph.metadata.example_shape[:2])
    command = [sys.executable, "-m", "shiftvit", "serve", str(model), "--port", "0", "--runtime", "onnxruntime"]
    began = time.perf_counter()
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process,
    ):
        assert process.stderr is not None
        found = re.search(r":(\d+);", process.stderr.readline())
        assert found, "the server did not start"
        start = time.perf_counter() - began
        port = int(found[1])
        drain = subprocess.Popen(["cat"], stdin=process.stderr, stdout=log)
        try:
            alone: dict[int, list[float]] = {batch: [] for batch in BATCHES}
            served = []
            seconds, clients = FAST if measure_rate(graph, 16, 1) > 100 else SLOW
            asyncio.run(Load(port, content).closed(clients, 2))
            for _ in range(ROUNDS):
                for batch in BATCHES:
                    alone[batch].append(measure_rate(graph, batch, seconds / len(BATCHES)))
                served.append(measure_served(port, content, folder, seconds, clients))
            rate = statistics.median(served)
            # The best batch by its median: the best of each round would be the luckiest.
            best = max(alone, key=lambda batch: statistics.median(alone[batch]))
            shares = [rate / reference for rate, reference in zip(served, alone[best], strict=True)]
            wait_until_idle(port)
            half = Load(port, content)
            asyncio.run(half.open(rate / 2, 10 if clients > 16 else 40))
            strain = asyncio.run(run_overload(process, port, content, 4 * rate))
        finally:
            process.terminate()
            drain.wait()
        status = process.wait()
    return {
        "model": Path(model).name,
        "input": list(graph.metadata.input_shape),
        "picture_bytes": len(content),
        "rounds": ROUNDS,
        "clients": clients,
        "seconds": seconds,
        "client": "wrk" if shutil.which("wrk") else "benchmarks/serve.py",
        "start_seconds": round(start, 2),
        "runtime_alone": {str(batch): round(statistics.median(rates), 1) for batch, rates in alone.items()},
        "served": round(rate, 1),
        "share_of_the_best_batch": round(statistics.median(shares), 3),
        "half_load": {
            "rate": round(rate / 2, 1),
            "statuses": {str(status): count for status, count in half.statuses.items()},
            "p50_milliseconds": compute_percentile(half.seconds, 0.5),
            "p99_milliseconds": compute_percentile(half.seconds, 0.99),
        },
        "four_times_the_capacity": strain,
        "exit_status_after_sigterm": status,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="cifar10")
    model = parser.parse_args().model
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        found = measure(model if model == "cifar10" else make_model(model, place), place)
    print(json.dumps(found, indent=2))
    write_record(f"serve-{model}", found)


if __name__ == "__main__":
    main()
