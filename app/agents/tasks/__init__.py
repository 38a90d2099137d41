"""Tasks, one module each; every module here is listed in ``app.agents.config.TASK_MODULES``."""
