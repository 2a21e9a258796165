"""infra/checks and mlflow/ hold scripts, not packages: their folders go on the path here."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def _scripts_on_the_path(project):
    with pytest.MonkeyPatch.context() as patch:
        for folder in ("infra/checks", "mlflow"):
            patch.syspath_prepend(str(project / folder))
        yield
