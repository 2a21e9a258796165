"""A component for infra/checks/image.py: two steps' work on the sample set, as in a pod."""

from kfp import dsl
from kfp.dsl import Dataset, Output


@dsl.component(base_image="exemplar-python", packages_to_install=[], install_kfp_package=False)
def probe(profile: str, data: Output[Dataset]) -> int:
    """Draw the sample set and its BM25 candidates; return the size of the pool."""
    from pathlib import Path

    from exemplar import steps
    from exemplar.config import Profile

    settings = Profile.model_validate_json(profile)
    folder = Path(data.path)
    counts = steps.download_data(settings, data=folder)
    steps.bm25_candidates(settings, data=folder, out=folder.with_name("candidates.parquet"))
    return int(counts["pool"])
