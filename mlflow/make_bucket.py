"""Makes the bucket MLFLOW_BUCKET on the store MLFLOW_S3_ENDPOINT_URL, unless it is there."""

from __future__ import annotations

import os
import sys
import time

WAIT_S = 120


def main() -> None:
    """Wait for the store to answer, then make the bucket."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import ClientError, EndpointConnectionError, HTTPClientError

    bucket = os.environ.get("MLFLOW_BUCKET") or sys.exit("Not set: MLFLOW_BUCKET.")
    store = boto3.client(
        "s3",
        endpoint_url=os.environ.get("MLFLOW_S3_ENDPOINT_URL") or None,
        config=Config(retries={"max_attempts": 1}, connect_timeout=5, read_timeout=30),
    )
    end = time.monotonic() + WAIT_S
    while True:
        try:
            names = [entry["Name"] for entry in store.list_buckets()["Buckets"]]
            if bucket not in names:
                store.create_bucket(Bucket=bucket)
            print(f"{bucket}: {'there already' if bucket in names else 'made'}")
            return
        except ClientError as error:
            sys.exit(f"The store refuses: {error}. Check AWS_ACCESS_KEY_ID and its rights.")
        except (EndpointConnectionError, HTTPClientError) as error:
            if time.monotonic() > end:
                sys.exit(f"The store did not answer for {WAIT_S} s: {error}")
            time.sleep(2)


if __name__ == "__main__":
    main()
