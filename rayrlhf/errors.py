"""The errors this project raises on purpose.

Every message says what happened with the values, the likely cause, and what to set.
All of them carry one message string, so they survive pickling between Ray processes.
"""


class RayRLHFError(Exception):
    """Base of every error raised on purpose."""


class UserError(RayRLHFError):
    """Something the user can mend; the command line prints it without a traceback and exits with 2."""


class ConfigError(UserError):
    """A key or a value of the configuration is wrong."""


class DataError(UserError):
    """A data file is missing, empty or of the wrong form."""


class ModelError(UserError):
    """A model folder is incomplete or does not fit what is asked of it."""


class CheckpointError(UserError):
    """A stage directory is missing, torn, or of another kind than asked for."""


class DivergenceError(UserError):
    """Optimizer steps had to be skipped again and again; the message is a report of them."""


class RewardError(UserError):
    """A reward function gave no scores; the message shows the response and the function's own traceback."""


class HealthError(UserError):
    """A watch over a run's metrics was told to stop it; the message says why, and where it goes on."""


class Interrupted(RayRLHFError):
    """A run ended after a whole step, as it was asked to; it can be resumed."""


class ResourceError(UserError):
    """More resources are asked than the cluster has."""


class RoleError(RayRLHFError):
    """A call to an actor failed; the message holds the role's name and the remote traceback."""


class DeadlineError(RoleError):
    """A call to an actor did not answer in time."""


class StateLost(RoleError):
    """A call to the policy or the critic failed: what its ranks held beyond the newest checkpoint is lost."""


class GaveUp(RoleError):
    """An actor failed as often as it was begun anew; the run ended, and can be resumed."""
