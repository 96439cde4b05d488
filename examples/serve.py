"""Serve a classifier of handwritten digits over HTTP while it is being trained, in one process.

The server's handlers are coroutines of one event loop: each pushes a forward pass and awaits its result, and no thread
waits for it.  Training goes on in another thread, on the same engine.  Every few steps it publishes a copy of the
weights, which costs nothing: the copy shares its memory with the weights until the next update is written beside it.

    python examples/serve.py                          # then: curl localhost:8080/status
    python examples/serve.py --requests 2000          # loads itself, prints the latencies, and ends
    python examples/serve.py --requests 200 --timeline timeline.png       # and draws which operation ran when

POST /predict takes {"image": 64 numbers from 0 to 1} and gives {"digit": ..., "step": ...}: the weights' age in steps.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import nullcontext
from typing import Any

import aiohttp
import numpy as np
from aiohttp import web
from sklearn.datasets import load_digits

import vardag as vd
from vardag import autograd, nd

HIDDEN = 128
BATCH = 64
PUBLISH = 10  # steps between two copies of the weights

Weights = dict[str, Any]


def forward(weights: Weights, images: Any) -> Any:
    """Scores (n, 10) of images (n, 64)."""
    hidden = nd.relu(nd.dot(images, weights["w1"]) + weights["b1"])
    return nd.dot(hidden, weights["w2"]) + weights["b2"]


class Trainer:
    """Trains until it is told to stop; `published` is (steps, weights) of a moment, and is replaced whole."""

    def __init__(self, seed: int = 0) -> None:
        raw = load_digits()
        self.images = (raw.images.reshape(-1, 64) / 16).astype("float32")
        self.labels = raw.target.astype("float32")
        rng = np.random.default_rng(seed)
        self.weights: Weights = {
            "w1": nd.array(rng.normal(0, 0.1, (64, HIDDEN))),
            "b1": nd.zeros(HIDDEN),
            "w2": nd.array(rng.normal(0, 0.1, (HIDDEN, 10))),
            "b2": nd.zeros(10),
        }
        for w in self.weights.values():
            w.attach_grad()
        self.batches = vd.io.batches((self.images, self.labels), BATCH, shuffle=True, seed=seed, last="discard")
        self.steps = 0
        self.stop = False
        self.publish()

    def publish(self) -> None:
        """Let the handlers have the weights as they are now."""
        self.published = self.steps, {name: w.detach().copy() for name, w in self.weights.items()}

    def step(self, images: Any, labels: Any, rate: float = 0.1) -> None:
        """One step of gradient descent."""
        with autograd.record():
            loss = -nd.log_softmax(forward(self.weights, images)).pick(labels).mean()
        loss.backward()
        for w in self.weights.values():
            w -= rate * w.grad  # noqa: PLW2901 - in place
        self.steps += 1
        if self.steps % PUBLISH == 0:
            self.publish()

    def run(self) -> None:
        """Until `stop`: in a thread of its own."""
        while not self.stop:
            for images, labels in vd.io.prefetch(self.batches, depth=2):
                self.step(images, labels)
                if self.stop:
                    break


TRAINER = web.AppKey("trainer", Trainer)


async def predict(request: web.Request) -> web.Response:
    """The digit that the latest published weights see in an image."""
    try:
        image = np.asarray((await request.json())["image"], dtype="float32").reshape(1, 64)
    except (ValueError, TypeError, KeyError):
        return web.json_response({"error": "expected {'image': 64 numbers}"}, status=400)
    step, weights = request.app[TRAINER].published
    scores = await forward(weights, nd.array(image)).asnumpy_async()
    return web.json_response({"digit": int(scores.argmax()), "step": step})


async def status(request: web.Request) -> web.Response:
    """How far the training is, and what the engine does."""
    engine = vd.engine.statistics()
    return web.json_response({"steps": request.app[TRAINER].steps, "pushed": engine.pushed, "pending": engine.pending})


async def training(app: web.Application) -> AsyncIterator[None]:
    """The training thread lives as long as the application."""
    trainer = app[TRAINER]
    running = asyncio.create_task(asyncio.to_thread(trainer.run))
    yield
    trainer.stop = True
    await running


def make_app(trainer: Trainer) -> web.Application:
    """The application."""
    app = web.Application()
    app[TRAINER] = trainer
    app.router.add_post("/predict", predict)
    app.router.add_get("/status", status)
    app.cleanup_ctx.append(training)
    return app


# ---- load ------------------------------------------------------------------------------------------------------------


async def load(url: str, images: np.ndarray, requests: int, clients: int) -> tuple[list[float], list[dict[str, Any]]]:
    """Send so many requests from so many clients; gives each one's seconds, and the answers in the order asked."""
    seconds = [0.0] * requests
    answers: list[dict[str, Any]] = [{}] * requests
    todo = iter(range(requests))

    async def client(session: aiohttp.ClientSession) -> None:
        for i in todo:
            body = {"image": images[i % len(images)].tolist()}
            begin = time.perf_counter()
            async with session.post(f"{url}/predict", json=body) as response:
                response.raise_for_status()
                answers[i] = await response.json()
            seconds[i] = time.perf_counter() - begin

    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=clients)) as session,
        asyncio.TaskGroup() as g,
    ):
        for _ in range(clients):
            g.create_task(client(session))
    return seconds, answers


def report(seconds: list[float]) -> str:
    """The latencies in a line."""
    p50, p99 = np.percentile(seconds, [50, 99]) * 1e3
    return f"{len(seconds)} requests: median {p50:.1f} ms, p99 {p99:.1f} ms, the longest {max(seconds) * 1e3:.1f} ms"


async def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--requests", type=int, default=0, help="load the server with so many requests, then end")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--timeline", metavar="PATH", help="draw the last tenth of a second of the load (matplotlib)")
    options = parser.parse_args()
    trainer = Trainer()
    runner = web.AppRunner(make_app(trainer))
    await runner.setup()
    try:
        await web.TCPSite(runner, "localhost", options.port).start()
        print(f"serving at http://localhost:{options.port}", flush=True)
        if not options.requests:
            await asyncio.Event().wait()
        url = f"http://localhost:{options.port}"
        watched = vd.engine.profile() if options.timeline else nullcontext()
        with watched as profile:
            seconds, answers = await load(url, trainer.images, options.requests, options.clients)
        if profile is not None:
            profile.plot(options.timeline, last=0.1)
        right = np.mean([a["digit"] == trainer.labels[i % len(trainer.labels)] for i, a in enumerate(answers)])
        print(report(seconds))
        print(json.dumps({"steps of training meanwhile": trainer.steps, "right answers": round(float(right), 3)}))
    finally:
        await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main())
