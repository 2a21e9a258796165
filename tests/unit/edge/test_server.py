"""Claims about the service, in this process, on a tiny retriever."""

import asyncio
import json
import threading
import time
from dataclasses import replace

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
from fastapi.testclient import TestClient

from exemplar.errors import RegistryError
from exemplar.serving import Retriever
from exemplar.serving.query import Query
from exemplar.serving.server.app import Limits, create_app
from exemplar.serving.server.batching import Batcher, OverloadError
from exemplar.serving.server.live import LiveModel, Loaded, Source

LIMITS = Limits(max_k=6, max_queries=3, max_query_chars=40, max_body_bytes=2000)


@pytest.fixture(scope="module")
def retriever(files):
    return Retriever.load(files.retriever, pool=files.pool)


def make(live, on_failure=print, **changes):
    given = {"limits": LIMITS, "batch_size": 8, "threads": 1, "poll_seconds": 0.05, **changes}
    return create_app(live, on_failure=on_failure, **given)


@pytest.fixture(scope="module")
def client(retriever):
    source = Source("pets", "champion", lambda: "7", lambda _: retriever)
    with TestClient(make(LiveModel(source)), raise_server_exceptions=False) as client:
        wait(lambda: client.get("/ready").status_code == 200)
        yield client


def wait(condition):
    stop = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < stop, "not within 20 seconds"
        time.sleep(0.02)


def test_one_query_gives_one_answer_and_a_list_a_list(client, retriever):
    """Answers must be the library's, in the order of the queries."""
    one = client.post("/v1/select", json={"query": "is it red", "k": 2}).json()
    expected = retriever.select("is it red", k=2)
    assert one["prompt"] == expected.prompt()
    assert [item["similarity"] for item in one["demonstrations"]] == [
        item.similarity for item in expected
    ]
    assert one["version"] == "7"
    asked = [
        {"query": "a cat", "k": 3, "format": "chat"},
        {"query": "is it red", "k": 2, "filters": {"answers": ["sun"]}, "format": "both"},
    ]
    chat, both = client.post("/v1/select", json=asked).json()
    assert chat["messages"] == retriever.select("a cat", k=3).messages()
    assert "prompt" not in chat
    assert {item["answer"] for item in both["demonstrations"]} == {"sun"}
    assert both["prompt"].endswith(both["messages"][-1]["content"] + "\n")


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ({"query": "a cat", "k": 7}, 422, "k: Input should be less than or equal to 6"),
        ({"query": "a cat", "k": 0}, 422, "k: Input should be greater than or equal to 1"),
        ({"query": "a cat", "k": "4"}, 422, "k: Input should be a valid integer"),
        ({"query": "a cat", "k": True}, 422, "k: Input should be a valid integer"),
        ({"query": "a" * 41}, 422, "query: String should have at most 40 characters"),
        ({"query": " "}, 422, "expected a text that is not empty"),
        ({"query": None}, 422, "query: Input should be a valid string"),
        ({"task": "animals"}, 422, "query: Field required"),
        ({"query": "a cat", "task": "sport"}, 422, "Unknown task 'sport': the pool holds animals"),
        ({"query": "a cat", "taks": "animals"}, 422, "taks: Extra inputs are not permitted"),
        ({"query": "a cat", "format": "xml"}, 422, "format: Input should be 'text', 'chat'"),
        ([{"query": "a"}, {"query": "a", "filters": {"ids": []}}], 422, "1.filters.ids: Extra"),
        ([{"query": "a"}, {"query": "a", "task": "sport"}], 422, "Unknown task"),
        ([{"query": "a"}] * 4, 422, "body: List should have at most 3 items"),
        ([], 422, "body: List should have at least 1 item"),
        ("a cat", 422, "body: Input should be a valid dictionary"),
        (b'{"query": "\\ud800"}', 422, "query: Input should be a valid string"),
        (b'{"query": "a cat"', 400, "not JSON"),
        (b"\xff\xfe", 400, ""),
        (b"[" * 1999, 400, ""),
        (b'{"query": "a cat", "k": ' + b"9" * 1900 + b"}", 422, "k: "),
        (b"", 422, "body: Field required"),
        (b" " * 2001, 413, "larger than 2000 bytes"),
    ],
)  # fmt: skip
def test_a_request_that_cannot_be_answered_says_why(client, body, status, told):
    """A traceback helps nobody; a wrong status code makes clients try again."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = client.post(
        "/v1/select", content=content, headers={"Content-Type": "application/json"}
    )
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert told in problem["detail"]
    assert problem["status"] == status


def test_a_body_that_does_not_say_its_length_is_cut_off_too(client):
    """Chunked uploads could fill the memory."""
    chunks = (b" " * 500 for _ in range(10))
    response = client.post("/v1/select", content=chunks)
    assert response.status_code == 413
    assert client.get("/nothing").status_code == 404
    assert client.get("/v1/select").status_code == 405


def test_the_api_describes_itself_with_its_limits(client):
    """Clients are generated from the description."""
    api = client.get("/openapi.json").json()
    assert set(api["paths"]) == {"/v1/select", "/v1/model", "/health", "/ready"}
    fields = api["components"]["schemas"]["SelectRequest"]["properties"]
    assert fields["k"]["anyOf"][0]["maximum"] == 6
    assert fields["query"]["maxLength"] == 40
    assert set(fields) == {"query", "task", "k", "filters", "format"}
    assert "413" in api["paths"]["/v1/select"]["post"]["responses"]
    model = client.get("/v1/model").json()
    assert model["pool_size"] == sum(model["tasks"].values()) == 105
    assert (model["name"], model["alias"], model["version"]) == ("pets", "champion", "7")
    assert (model["k"], model["selection"]["order"]) == (4, "nearest_last")


def test_a_query_without_k_gets_the_model_s_number_within_the_limit(retriever):
    """Prompts of another length than was evaluated would be built without a word."""
    source = Source("pets", None, lambda: None, lambda _: retriever)
    for limits, expected in ((LIMITS, 4), (replace(LIMITS, max_k=2), 2)):
        with TestClient(make(LiveModel(source), limits=limits)) as client:
            wait(lambda client=client: client.get("/ready").status_code == 200)
            for body in ({"query": "a cat"}, {"query": "a cat", "k": None}):
                found = client.post("/v1/select", json=body).json()
                assert len(found["demonstrations"]) == expected


def test_until_a_model_is_loaded_the_service_lives_but_is_not_ready(retriever):
    """Traffic sent too early would fail; a restart for slowness would never end."""
    loading = threading.Event()

    def load(_):
        assert loading.wait(20)
        return retriever

    with TestClient(make(LiveModel(Source("pets", None, lambda: None, load)))) as client:
        assert client.get("/health").json() == {"status": "ok"}
        assert client.get("/ready").status_code == 503
        response = client.post("/v1/select", json={"query": "a cat"})
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert client.get("/v1/model").status_code == 503
        loading.set()
        wait(lambda: client.get("/ready").status_code == 200)
        assert client.post("/v1/select", json={"query": "a cat"}).json()["version"] is None


def test_a_first_model_that_does_not_load_ends_the_service():
    """It would never become ready, and nobody would know why."""
    failures = []

    def load(_):
        raise RegistryError("it is gone")

    live = LiveModel(Source("pets", "champion", lambda: "1", load))
    with TestClient(make(live, on_failure=failures.append)):
        wait(lambda: failures)
    assert str(failures[0]) == "it is gone"


def test_a_new_version_that_does_not_load_leaves_the_old_one_answering(retriever):
    """A damaged upload would stop the service."""
    wanted, loads = ["1"], []

    def load(version):
        loads.append(version)
        if version == "2":
            raise OSError("the disk is full")
        return retriever

    live = LiveModel(Source("pets", "champion", lambda: wanted[0], load))
    with TestClient(make(live)) as client:
        wait(lambda: client.get("/ready").status_code == 200)
        wanted[0] = "2"
        wait(lambda: client.get("/ready").json()["update_error"])
        ready = client.get("/ready")
        assert (ready.status_code, ready.json()["version"]) == (200, "1")
        assert ready.json()["update_error"] == "OSError: the disk is full"
        assert client.post("/v1/select", json={"query": "a cat"}).json()["version"] == "1"
        time.sleep(0.2)
        assert loads == ["1", "2"], "a broken version is not downloaded at every look"
        wanted[0] = "3"
        wait(lambda: client.get("/v1/model").json()["version"] == "3")
        assert client.get("/ready").json()["update_error"] is None


class Slow:
    """Answers with the number of the batch, when it may; fails where a query says so."""

    def __init__(self):
        self.batches, self.may = [], threading.Event()

    def answer(self, queries):
        assert self.may.wait(20)
        self.batches.append([query.text for query in queries])
        if any(query.text == "bad" for query in queries):
            raise RuntimeError("a bad query")
        return [query.text.upper() for query in queries]


def batched(work, **changes):
    """Run `work(batcher, model)` with a slow retriever; give the result and the batches."""

    async def main():
        slow = Slow()
        batcher = Batcher(**{"batch_size": 4, "most_waiting": 5, "threads": 1, **changes})
        result = await work(batcher, slow, Loaded(slow, "1", ""))
        await batcher.close()
        return result, slow.batches

    return asyncio.run(main())


def test_queries_that_wait_are_answered_together_and_each_gets_its_own_answer():
    """One after the other, ten users wait ten times as long."""

    async def work(batcher, slow, model):
        texts = [["a"], ["b", "c"], ["d"], ["e", "f"], ["bad"]]
        tasks = [
            asyncio.create_task(batcher.answer(model, [Query(text) for text in group]))
            for group in texts[:3]
        ]
        await asyncio.sleep(0.05)
        other = Loaded(slow, "2", "")
        tasks += [asyncio.create_task(batcher.answer(other, [Query(t) for t in texts[3]]))]
        tasks += [asyncio.create_task(batcher.answer(other, [Query("bad")]))]
        await asyncio.sleep(0.05)
        slow.may.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    (*found, bad), batches = batched(work)
    assert found == [["A"], ["B", "C"], ["D"], ["E", "F"]]
    assert str(bad) == "a bad query"
    # The bad one fails with its batch, then each is answered by itself.
    assert batches == [["a", "b", "c", "d"], ["e", "f", "bad"], ["e", "f"], ["bad"]]


def test_more_than_can_be_answered_soon_is_refused_at_once():
    """A queue that grows without end answers everybody too late."""

    async def work(batcher, slow, model):
        first = asyncio.create_task(batcher.answer(model, [Query("a")]))
        await asyncio.sleep(0.05)
        waiting = [asyncio.create_task(batcher.answer(model, [Query("b")])) for _ in range(5)]
        await asyncio.sleep(0.05)
        with pytest.raises(OverloadError):
            await batcher.answer(model, [Query("c")])
        slow.may.set()
        return await asyncio.gather(first, *waiting)

    found, batches = batched(work)
    assert found == [["A"], *[["B"]] * 5]
    assert [len(batch) for batch in batches] == [1, 4, 1]
