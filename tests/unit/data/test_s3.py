"""Claims about fetching from an S3 store, against a server that speaks the protocol."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from exemplar import steps
from exemplar.data import s3
from exemplar.data.dataset import read_dataset
from exemplar.errors import DataError

BIG = bytes(range(256)) * 40  # 10,240 bytes: eleven parts of 1,000


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = pytest.importorskip("moto.server").ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def client(endpoint: str) -> Iterator[Any]:
    import boto3

    made = boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id="a",
        aws_secret_access_key="b",
        region_name="us-east-1",
    )
    made.create_bucket(Bucket="research")
    for key, content in {
        "sets/sst2/train.jsonl": b"train",
        "sets/sst2/test.jsonl": b"test",
        "sets/tasks.yaml": BIG,
        "sets/empty-folder/": b"",
        "sets-of-others/x.jsonl": b"not asked for",
    }.items():
        made.put_object(Bucket="research", Key=key, Body=content)
    yield made
    for item in made.list_objects_v2(Bucket="research").get("Contents", ()):
        made.delete_object(Bucket="research", Key=item["Key"])
    made.delete_bucket(Bucket="research")


class Watched:
    """A client that keeps what was asked for, and may spoil what comes back."""

    def __init__(self, client: Any, spoil: Any = None) -> None:
        self._client, self._spoil = client, spoil
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def get_object(self, **asked: Any) -> Any:
        self.asked.append(f"{asked['Key']} {asked['Range']}")
        reply = self._client.get_object(**asked)
        return self._spoil(reply, asked) if self._spoil else reply


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def test_a_folder_comes_whole_and_once(client: Any, tmp_path: Path) -> None:
    """Fetching gigabytes again on every run would make the store the slowest step."""
    watched = Watched(client)
    root = s3.fetch("s3://research/sets", tmp_path, client=watched, part_bytes=1000)
    assert files(root) == {
        "sst2/train.jsonl": b"train",
        "sst2/test.jsonl": b"test",
        "tasks.yaml": BIG,
    }
    assert len(watched.asked) == 13
    again = Watched(client)
    assert s3.fetch("s3://research/sets/", tmp_path, client=again) == root
    assert again.asked == []


def test_what_changes_on_the_store_changes_here(client: Any, tmp_path: Path) -> None:
    """Training on yesterday's file would go unnoticed for ever."""
    s3.fetch("s3://research/sets", tmp_path, client=client)
    client.put_object(Bucket="research", Key="sets/sst2/train.jsonl", Body=b"newer")
    client.delete_object(Bucket="research", Key="sets/sst2/test.jsonl")
    watched = Watched(client)
    root = s3.fetch("s3://research/sets", tmp_path, client=watched)
    assert files(root) == {"sst2/train.jsonl": b"newer", "tasks.yaml": BIG}
    assert watched.asked == ["sets/sst2/train.jsonl bytes=0-4"]


def test_a_broken_download_goes_on_where_it_broke(client: Any, tmp_path: Path) -> None:
    """Half a gigabyte over a bad line must not start at zero each time."""
    from botocore.exceptions import ResponseStreamingError

    class Broken(io.BytesIO):
        def read(self, *_: Any) -> bytes:
            raise ResponseStreamingError(error="connection reset")

    def cut(reply: Any, asked: Any) -> Any:
        return {**reply, "Body": Broken()} if asked["Range"].startswith("bytes=4000-") else reply

    with pytest.raises(DataError, match=r"tasks.yaml: the connection broke .* at byte 4,000"):
        s3.fetch("s3://research/sets", tmp_path, client=Watched(client, cut), part_bytes=1000)
    assert "tasks.yaml" not in files(tmp_path / "research/sets")
    watched = Watched(client)
    root = s3.fetch("s3://research/sets", tmp_path, client=watched, part_bytes=1000)
    assert watched.asked[0] == "sets/tasks.yaml bytes=4000-4999"
    assert files(root)["tasks.yaml"] == BIG


def test_a_connection_that_breaks_now_and_then_is_no_error(client: Any, tmp_path: Path) -> None:
    """Over hours some part always fails once."""
    seen: set[str] = set()

    def short_at_first(reply: Any, asked: Any) -> Any:
        if asked["Range"] in seen or asked["Key"] != "sets/tasks.yaml":
            return reply
        seen.add(asked["Range"])
        return {**reply, "Body": io.BytesIO(reply["Body"].read()[:-1])}

    watched = Watched(client, short_at_first)
    root = s3.fetch("s3://research/sets", tmp_path, client=watched, part_bytes=4000)
    assert files(root)["tasks.yaml"] == BIG
    assert len(watched.asked) == 2 * 3 + 2


def test_other_bytes_than_announced_are_refused(client: Any, tmp_path: Path) -> None:
    """A flipped bit in a label is found by nothing further down."""

    def flip(reply: Any, _: Any) -> Any:
        content = reply["Body"].read()
        return {**reply, "Body": io.BytesIO(content[:-1] + b"?")}

    with pytest.raises(DataError, match="bytes that arrived are not those of the store"):
        s3.fetch("s3://research/sets", tmp_path, client=Watched(client, flip))
    assert files(tmp_path) == {}
    assert files(s3.fetch("s3://research/sets", tmp_path, client=client))["tasks.yaml"] == BIG


def test_an_object_uploaded_in_parts_is_fetched_too(client: Any, tmp_path: Path) -> None:
    """Its ETag is no checksum of the content: taken for one, every large file would be refused."""
    whole = b"x" * (5 << 20) + b"the end"
    asked = {"Bucket": "research", "Key": "large/a.jsonl"}
    upload = client.create_multipart_upload(**asked)["UploadId"]
    parts = []
    for number, content in enumerate((whole[: 5 << 20], whole[5 << 20 :]), 1):
        reply = client.upload_part(**asked, UploadId=upload, PartNumber=number, Body=content)
        parts.append({"PartNumber": number, "ETag": reply["ETag"]})
    client.complete_multipart_upload(**asked, UploadId=upload, MultipartUpload={"Parts": parts})
    assert files(s3.fetch("s3://research/large", tmp_path, client=client)) == {"a.jsonl": whole}


def test_an_object_that_changes_while_it_is_read_is_refused(client: Any, tmp_path: Path) -> None:
    """Half of the old and half of the new would be neither."""

    def replace_it(reply: Any, asked: Any) -> Any:
        client.put_object(Bucket="research", Key=asked["Key"], Body=b"n" * len(BIG))
        return reply

    with pytest.raises(DataError, match="was changed while it was read"):
        s3.fetch(
            "s3://research/sets", tmp_path, client=Watched(client, replace_it), part_bytes=4000
        )


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("s3://nowhere-at-all/sets", "there is no such bucket"),
        ("s3://research/nothing-here", "holds no file"),
        ("http://research/sets", "is no address of an S3 store"),
        ("s3://", "is no address of an S3 store"),
        ("s3://research/../../etc", "is no address of an S3 store"),
    ],
)
def test_a_wrong_address_is_one_clear_error(
    client: Any, tmp_path: Path, address: str, message: str
) -> None:
    """The library's own words are an HTTP status and a request id."""
    with pytest.raises(DataError, match=message):
        s3.fetch(address, tmp_path, client=client)


def test_missing_credentials_and_a_dead_endpoint_are_told_apart(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Both are common on a first day, and their cures have nothing in common."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(DataError, match="no credentials were found"):
        s3.fetch("s3://research/sets", tmp_path)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(DataError, match="the store cannot be reached"):
        s3.fetch("s3://research/sets", tmp_path)


def test_download_data_reads_from_the_store(
    client: Any, endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, project: Path
) -> None:
    """The source has to work through the step and the environment, as users have it."""
    from exemplar.config import load_params

    for split in ("train", "test"):
        rows = [{"sentence": f"{split} film {i}", "label": i % 2} for i in range(4)]
        body = "".join(json.dumps(row) + "\n" for row in rows).encode()
        client.put_object(Bucket="research", Key=f"films/sst2/{split}.jsonl", Body=body)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("HOME", str(tmp_path))
    profile = load_params(project / "params.yaml").profiles["cpu"]
    update = {"source": "s3", "path": "s3://research/films", "tasks": None}
    settings = profile.download_data.model_copy(update=update)
    steps.download_data(
        profile.model_copy(update={"download_data": settings}), data=tmp_path / "data"
    )
    assert len(read_dataset(tmp_path / "data").pool) == 4
