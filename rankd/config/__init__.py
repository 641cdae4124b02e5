"""Every default and limit of the daemon, each with its reason; checked on construction.

limits.py: what peers may make the daemon hold; serve.py: what it runs with; settings.py: both out of what a user said.
Nothing here reads argv, the environment or files: that is the CLI's, which hands over what it found.
"""

from rankd.config.error import ConfigError
from rankd.config.limits import MAX_RUNS, Limits
from rankd.config.serve import DEFAULT_HTTP, DEVICES, EXECUTOR_NAMES, HistoryConfig, ServeConfig
from rankd.config.settings import SETTINGS, detect_config, serve_config

__all__ = [
    "DEFAULT_HTTP",
    "DEVICES",
    "EXECUTOR_NAMES",
    "MAX_RUNS",
    "SETTINGS",
    "ConfigError",
    "HistoryConfig",
    "Limits",
    "ServeConfig",
    "detect_config",
    "serve_config",
]
