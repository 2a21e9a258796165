"""A folder of files on an S3 store, brought here: in parts, checked, going on where it broke off.

Address, keys and endpoint are found as the AWS tools find them: `AWS_ENDPOINT_URL`,
`AWS_ACCESS_KEY_ID`, `AWS_PROFILE`, `~/.aws/`, the instance's role.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from exemplar.errors import DataError

PART_BYTES = 16 << 20
"""How much is asked for at once; a broken download loses at most one part."""

_TRIES = 5
_MD5_DIGITS = 32


@dataclass(frozen=True)
class _Object:
    key: str
    etag: str
    size: int

    def asked(self, bucket: str) -> dict[str, str]:
        """Return what asks for this version of the object and no other."""
        return {"Bucket": bucket, "Key": self.key, "IfMatch": f'"{self.etag}"'}


def fetch(
    address: str,
    folder: Path,
    *,
    progress: str | None = None,
    client: Any = None,
    part_bytes: int = PART_BYTES,
) -> Path:
    """Bring all files below `s3://bucket/prefix` into a folder of their own below `folder`.

    Files that are here already in the same version (ETag and size) are left as they are; files that
    the store no longer has are removed. Returns the folder that stands for the address. `client`:
    a boto3 S3 client; None makes one from the environment. `part_bytes`: asked for at once.

    Raises `DataError` on an address that is none or holds nothing, and where the store refuses,
    cannot be reached, or sends other bytes than it announced.
    """
    bucket, prefix = _parse(address)
    client = client or _client(address)
    root = folder / bucket / prefix
    objects = {o.key: o for o in _errors(address, lambda: list(_list(client, bucket, prefix)))}
    names = {key: _relative(key, prefix) for key in objects}
    if not names:
        raise DataError(
            f"{address} holds no file. Expected a folder a task with train and test files below "
            "it; check bucket and prefix, for example with `aws s3 ls`."
        )
    _remove_others(root, {root / name for name in names.values()})
    missing = [o for key, o in objects.items() if not _is_here(root / names[key], o)]
    total = sum(item.size for item in missing)
    with tqdm(
        total=total, desc=progress, disable=progress is None, unit="B", unit_scale=True
    ) as bar:
        for item in missing:
            _download(client, bucket, item, root / names[item.key], part_bytes, bar)
    return root


def _parse(address: str) -> tuple[str, str]:
    parts = urlsplit(address)
    prefix = parts.path.strip("/")
    if parts.scheme != "s3" or not parts.netloc or ".." in PurePosixPath(prefix).parts:
        raise DataError(
            f"{address!r} is no address of an S3 store: expected s3://BUCKET/FOLDER, for example "
            "s3://research/few-shot/tasks."
        )
    return parts.netloc, prefix


def _client(address: str) -> Any:
    try:
        import boto3
        from botocore.config import Config
    except ModuleNotFoundError as error:
        if error.name not in ("boto3", "botocore"):
            raise
        raise DataError(
            "the source 's3' needs boto3, which is not installed here. "
            "Install it with `pip install 'exemplar[s3]'`."
        ) from error
    settings = Config(retries={"mode": "standard"})  # and AWS_MAX_ATTEMPTS, three unless set
    session = boto3.session.Session()  # boto3's own one keeps the first credentials that it meets
    return _errors(address, lambda: session.client("s3", config=settings))


def _list(client: Any, bucket: str, prefix: str) -> Iterator[_Object]:
    folder = f"{prefix}/" if prefix else ""
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=folder):
        for item in page.get("Contents", ()):
            if not item["Key"].endswith("/"):  # a marker that consoles leave for a folder
                yield _Object(item["Key"], item["ETag"].strip('"'), int(item["Size"]))


def _relative(key: str, prefix: str) -> str:
    name = key.removeprefix(f"{prefix}/") if prefix else key
    if ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute():
        raise DataError(f"the store holds a key that leads out of its folder: {key!r}. Rename it.")
    return name


def _marker(target: Path) -> Path:
    return target.with_name(f".{target.name}.etag")


def _is_here(target: Path, item: _Object) -> bool:
    marker = _marker(target)
    same = marker.is_file() and marker.read_text(encoding="utf-8") == item.etag
    return same and target.is_file() and target.stat().st_size == item.size


def _remove_others(root: Path, wanted: set[Path]) -> None:
    for path in root.rglob("*") if root.is_dir() else ():
        if path.is_file() and not path.name.startswith(".") and path not in wanted:
            path.unlink()
            _marker(path).unlink(missing_ok=True)


def _download(
    client: Any, bucket: str, item: _Object, target: Path, part_bytes: int, bar: Any
) -> None:
    """Append part after part to a hidden file, check it, and give it its name."""
    where = f"s3://{bucket}/{item.key}"
    target.parent.mkdir(parents=True, exist_ok=True)
    version = hashlib.sha256(item.etag.encode()).hexdigest()[:12]
    partial = target.with_name(f".{target.name}.{version}.part")
    have = partial.stat().st_size if partial.is_file() else 0
    if have > item.size:
        partial.unlink()
        have = 0
    bar.update(have)
    with partial.open("ab") as file:
        while have < item.size:
            end = min(have + part_bytes, item.size) - 1
            content = _part(client, bucket, item, where, have, end)
            file.write(content)
            have += len(content)
            bar.update(len(content))
    asked = item.asked(bucket)
    head = _errors(where, lambda: client.head_object(**asked, ChecksumMode="ENABLED"))
    _check(partial, _announced(head), where)
    partial.replace(target)
    _marker(target).write_text(item.etag, encoding="utf-8")


def _part(client: Any, bucket: str, item: _Object, where: str, begin: int, end: int) -> bytes:
    """Return bytes `begin` to `end`, both included; what arrives short is asked for again."""
    from botocore.exceptions import HTTPClientError, IncompleteReadError

    asked = item.asked(bucket)
    for attempt in range(1, _TRIES + 1):
        reply = _errors(where, lambda: client.get_object(**asked, Range=f"bytes={begin}-{end}"))
        content = b""
        with suppress(HTTPClientError, IncompleteReadError):
            content = reply["Body"].read()
        if len(content) == end - begin + 1:
            return content
        if attempt < _TRIES:
            time.sleep(0.1 * 2**attempt)
    raise DataError(
        f"{where}: the connection broke {_TRIES} times at byte {begin:,}. What has arrived is "
        "kept; run the step again to go on from there."
    )


def _announced(head: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the checksum of the whole object that the store tells, if it tells one."""
    sha256 = head.get("ChecksumSHA256", "")
    if sha256 and "-" not in sha256:  # with a number at the end it is one of checksums of parts
        return "sha256", base64.b64decode(sha256).hex()
    etag = head["ETag"].strip('"')
    managed = "kms" in head.get("ServerSideEncryption", "")
    if len(etag) == _MD5_DIGITS and not managed and "SSECustomerAlgorithm" not in head:
        return "md5", etag
    return None


def _check(partial: Path, announced: tuple[str, str] | None, where: str) -> None:
    """Compare what arrived with the store's checksum; without one its size has to do."""
    if announced is None:
        return
    name, expected = announced
    digest = functools.partial(hashlib.new, name, usedforsecurity=False)
    with partial.open("rb") as file:
        found = hashlib.file_digest(file, digest).hexdigest()
    if found != expected:
        partial.unlink()
        raise DataError(
            f"{where}: the bytes that arrived are not those of the store ({name} {found[:12]}, "
            f"expected {expected[:12]}). They were deleted; run the step again. If it stays so, "
            "the store is damaged: upload the file again."
        )


_REFUSALS = {
    "NoSuchBucket": "there is no such bucket. Check the name, and the endpoint (AWS_ENDPOINT_URL).",
    "NoSuchKey": "there is no such object any more. Run the step again.",
    "404": "there is no such bucket or object. Check the name, and the endpoint.",
    "PreconditionFailed": "it was changed while it was read. Run the step again.",
    "412": "it was changed while it was read. Run the step again.",
}
_KEYS = ("AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken")


def _errors(where: str, call: Any) -> Any:
    """Call, and turn what the store or the network refuses into one message."""
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        EndpointConnectionError,
        NoCredentialsError,
        PartialCredentialsError,
    )

    try:
        return call()
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise DataError(
            f"{where}: no credentials were found ({error}). Set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the machine a role."
        ) from error
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        told = _REFUSALS.get(code)
        if code in _KEYS:
            told = "the store refuses these credentials. Check them, and that they may read there."
        raise DataError(f"{where}: {told or error} ({code})") from error
    except EndpointConnectionError as error:
        raise DataError(
            f"{where}: the store cannot be reached ({error}). Check the network, and the endpoint "
            "(AWS_ENDPOINT_URL)."
        ) from error
    except BotoCoreError as error:
        raise DataError(f"{where}: {error}. Check the settings of the AWS tools.") from error
