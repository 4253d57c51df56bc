"""Every error a user can meet: raised before any work, naming the thing and its value."""


class PyengineError(Exception):
    """Base of all errors raised on purpose; the command line prints these in one sentence."""


class ConfigError(PyengineError, ValueError):
    """A setting, recipe field or model option that is unknown, unsupported or out of range."""


class ModelFileError(PyengineError, ValueError):
    """A model file that is missing, corrupt or does not fit its own config."""


class DataError(PyengineError, ValueError):
    """A data row that is not what its format asks for; names file, row and column."""


class TemplateError(PyengineError, ValueError):
    """A chat template that is missing, fails, or breaks a promise that the engine relies on."""


class RequestError(PyengineError, ValueError):
    """A generate, score or update call whose arguments cannot be served."""


class EngineBusyError(RequestError):
    """A call of an engine that came while another one ran: from a callback or another thread."""


class RewardError(PyengineError, RuntimeError):
    """Too few valid rewards to train on."""


class SpendingLimitError(PyengineError, RuntimeError):
    """A judge that costs money has reached the limit that was set for it."""


class CheckpointError(PyengineError, RuntimeError):
    """A checkpoint that cannot be written, verified or read."""


class CacheError(PyengineError, RuntimeError):
    """A cache's file that is locked by another program, on a full disk, or damaged."""


class NonFiniteError(PyengineError, ArithmeticError):
    """Loss or gradients stayed NaN or infinite for too many steps in a row."""


class RankError(PyengineError, RuntimeError):
    """Another process of the run has gone, does not answer or cannot go on: which, and why."""


class MissingDependencyError(PyengineError, ImportError):
    """An optional package that the call needs is not installed; says which extra brings it."""
