"""Every default and limit of the daemon, each with its reason; checked on construction.

limits.py: what peers may make the daemon hold; serve.py: what it runs with; ray.py: how much of a Ray cluster it takes;
settings.py: all of it out of what a user said.
Nothing here reads argv, the environment or files: that is the CLI's, which hands over what it found.
"""

from rankd.config.error import ConfigError
from rankd.config.limits import MAX_RUNS, Limits
from rankd.config.ray import RayConfig
from rankd.config.serve import DEFAULT_HTTP, DEVICES, EXECUTOR_NAMES, RAY_URL, HistoryConfig, ServeConfig
from rankd.config.settings import SETTINGS, detect_config, serve_config

__all__ = [
    "DEFAULT_HTTP",
    "DEVICES",
    "EXECUTOR_NAMES",
    "MAX_RUNS",
    "RAY_URL",
    "SETTINGS",
    "ConfigError",
    "HistoryConfig",
    "Limits",
    "RayConfig",
    "ServeConfig",
    "detect_config",
    "serve_config",
]
