"""The sample's API as a client sees it that has a key: for tests on this machine, in containers and on hosts."""

from typing import Any

import httpx

from celery_durable.testing import wait_for


class ApiClient(httpx.Client):
    """A client of one API."""

    def __init__(self, url: str, key: str = "", transport: httpx.BaseTransport | None = None) -> None:
        """Speak to ``url`` with ``key``, unless ``transport`` has one."""
        super().__init__(base_url=url, headers={"X-API-Key": key} if key else None, timeout=10, transport=transport)

    def enqueue(self, data: dict[str, Any] | None = None, **headers: str) -> str:
        """Enqueue a task and return its id."""
        response = self.post("/tasks/enqueue", json={"data": data or {}}, headers=headers)
        assert response.status_code == 202, response.text
        task_id: str = response.json()["task_id"]
        return task_id

    def status(self, task_id: str) -> dict[str, Any]:
        """Return what the API knows about a task."""
        response = self.get(f"/tasks/status/{task_id}")
        assert response.status_code == 200, response.text
        status: dict[str, Any] = response.json()
        return status

    def state(self, task_id: str) -> str:
        """Return a task's state."""
        return str(self.status(task_id)["status"])

    def wait(self, task_id: str, *states: str, seconds: float = 30, through_outages: bool = False) -> dict[str, Any]:
        """Wait until a task is in one of ``states`` (SUCCESS unless said otherwise); return its status.

        ``through_outages`` takes a 503 for "not yet".
        """
        wanted = states or ("SUCCESS",)

        def reached() -> dict[str, Any] | None:
            if through_outages and self.get(f"/tasks/status/{task_id}").status_code == 503:
                return None
            status = self.status(task_id)
            return status if status["status"] in wanted else None

        return wait_for(reached, f"task {task_id} in {wanted}", seconds)
