"""The entry script of the registered model: MLflow stores this file and runs it on loading.

It needs the package exemplar where it is loaded, and nothing else of the project.
"""

import warnings

from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from exemplar.errors import ExemplarError
from exemplar.serving import Retriever, answer

# MLflow asks for type hints on `predict` when the class is made, whatever the filters say. With
# hints it would replace the signature that the model is stored with.
with warnings.catch_warnings(record=True):

    class ServedRetriever(PythonModel):
        """Queries in (query; optionally task, k, filters, format), demonstrations and prompts out.

        Parameters k and format hold for the rows that give none.
        """

        def load_context(self, context):
            """Load the encoder and the embedded pool, once."""
            self.retriever = Retriever.load(context.artifacts["bundle"])

        def predict(self, context, model_input, params=None):
            """Answer a table of queries; one that cannot be answered is the client's error."""
            given = {"k": self.retriever.settings.num_shots, "format": "text", **(params or {})}
            try:
                return answer(
                    self.retriever, model_input, k=int(given["k"]), format=given["format"]
                )
            except ExemplarError as error:
                raise MlflowException.invalid_parameter_value(str(error)) from error


set_model(ServedRetriever())
