"""The example server answers while it trains: no request is lost, and the answers are those of published weights."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from vardag import nd
from vardag.engine import Engine

from .loading import load_example

aiohttp = pytest.importorskip("aiohttp")
pytest.importorskip("sklearn")
test_utils = pytest.importorskip("aiohttp.test_utils")

REQUESTS, CLIENTS = 600, 32


async def test_no_request_is_lost_while_it_trains() -> None:
    example = load_example("serve")
    with Engine(workers=2):
        trainer = example.Trainer()
        async with test_utils.TestServer(example.make_app(trainer)) as server:
            url = str(server.make_url("")).rstrip("/")
            async with asyncio.timeout(90):
                async with aiohttp.ClientSession() as session:
                    while trainer.steps < 100:  # it trains while somebody asks only how far it is
                        async with session.get(f"{url}/status") as response:
                            assert (await response.json())["steps"] >= 0
                before = trainer.steps
                seconds, answers = await example.load(url, trainer.images, REQUESTS, CLIENTS)
        print(f"\n{example.report(seconds)}, with {CLIENTS} clients and {trainer.steps - before} steps of training")
        assert len(answers) == REQUESTS
        assert all(set(answer) == {"digit", "step"} for answer in answers)
        assert trainer.steps > before  # and it went on
        steps = [answer["step"] for answer in answers]
        assert len(set(steps)) > 1 and min(steps) >= before - example.PUBLISH
        right = np.mean([answer["digit"] == trainer.labels[i] for i, answer in enumerate(answers)])
        assert right > 0.6  # ten digits
        assert max(seconds) < 60


async def test_the_answers_are_those_of_one_set_of_weights() -> None:
    """With the training stopped, the answers are those that the weights give by themselves."""
    example = load_example("serve")
    with Engine(workers=2):
        trainer = example.Trainer()
        for images, labels in trainer.batches:
            trainer.step(images, labels)
        trainer.publish()
        trainer.stop = True
        async with test_utils.TestServer(example.make_app(trainer)) as server:
            url = str(server.make_url("")).rstrip("/")
            _, answers = await example.load(url, trainer.images, 100, 8)
        scores = example.forward(trainer.weights, nd.array(trainer.images[:100])).asnumpy()
        assert [answer["digit"] for answer in answers] == scores.argmax(axis=1).tolist()
        assert {answer["step"] for answer in answers} == {trainer.steps}


@pytest.mark.parametrize("body", ["{}", "no json", '{"image": [1, 2]}', '{"image": "x"}', "[]"])
async def test_a_bad_request_is_refused(body: str) -> None:
    example = load_example("serve")
    with Engine(workers=1):
        trainer = example.Trainer()
        trainer.stop = True
        async with test_utils.TestClient(test_utils.TestServer(example.make_app(trainer))) as client:
            response = await client.post("/predict", data=body, headers={"Content-Type": "application/json"})
            assert response.status == 400
            assert "64 numbers" in (await response.json())["error"]
            response = await client.get("/status")
            assert (await response.json())["steps"] == 0
