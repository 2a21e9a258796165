"""The errors that Exemplar raises on purpose.

    ExemplarError
    ├── ConfigError      params.yaml or an option: unknown key, wrong type, value out of range
    ├── DataError        a file is missing, corrupt, of another schema, or made from other inputs
    ├── TaskError        a task is unknown, empty, or a row does not fit its definition
    ├── PromptError      a prompt or an answer does not fit the token budget
    ├── ModelError       a model reference leads to no model, or a model returned NaN
    ├── TrainingError    training diverged, or a teacher is too weak to teach
    ├── RegistryError    the model registry lacks a version or alias, or refuses one
    └── PipelineError    a pipeline's run failed, or the Kubeflow endpoint did not do as asked

Every one is a `ValueError`: something the user gave, or asked for, cannot be used. The command
line prints its message alone and exits with code 2. A message says what was expected, what came
instead and what to do about it. Broken invariants of our own are `assert`, never these.
"""


class ExemplarError(ValueError):
    """Base of every error that a user can mend."""


class ConfigError(ExemplarError):
    """A setting is unknown, of the wrong type or out of range."""


class DataError(ExemplarError):
    """A data file is missing, corrupt, of another schema, or made from other inputs."""


class TaskError(ExemplarError):
    """A task is unknown, empty, or one of its rows does not fit its definition."""


class PromptError(ExemplarError):
    """A prompt or an answer does not fit the token budget; `index`: which of several, if known."""

    def __init__(self, message: str, *, index: int | None = None):
        super().__init__(message)
        self.index = index


class ModelError(ExemplarError):
    """A model reference leads to no usable model, or a model returned NaN."""


class TrainingError(ExemplarError):
    """Training diverged, or a reward model ranks too poorly to teach."""


class RegistryError(ExemplarError):
    """The model registry lacks a version or alias, or refuses one."""


class PipelineError(ExemplarError):
    """A pipeline's run failed, or the Kubeflow endpoint did not do as asked."""
