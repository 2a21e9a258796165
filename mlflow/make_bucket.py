"""Makes the bucket MLFLOW_BUCKET on the store MLFLOW_S3_ENDPOINT_URL, unless it is there."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

WAIT_S = 120


def make(store: Any, bucket: str, wait_s: float = WAIT_S) -> bool:
    """Wait for the store to answer, make the bucket, and return whether it was missing.

    `store`: a client of boto3. Raises its error where the store refuses, or answers too late.
    """
    from botocore.exceptions import EndpointConnectionError, HTTPClientError

    end = time.monotonic() + wait_s
    while True:
        try:
            missing = bucket not in {entry["Name"] for entry in store.list_buckets()["Buckets"]}
            if missing:
                store.create_bucket(Bucket=bucket)
            return missing
        except (EndpointConnectionError, HTTPClientError):
            if time.monotonic() > end:
                raise
            time.sleep(1)


def main() -> None:
    """Read the environment, make the bucket, and say so."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    bucket = os.environ.get("MLFLOW_BUCKET") or sys.exit("Not set: MLFLOW_BUCKET.")
    store = boto3.client(
        "s3",
        endpoint_url=os.environ.get("MLFLOW_S3_ENDPOINT_URL") or None,
        config=Config(retries={"max_attempts": 1}, connect_timeout=5, read_timeout=30),
    )
    try:
        print(f"{bucket}: {'made' if make(store, bucket) else 'there already'}")
    except (BotoCoreError, ClientError) as error:
        sys.exit(f"{bucket} could not be made: {error}. Check the store's address and AWS_* keys.")


if __name__ == "__main__":
    main()
