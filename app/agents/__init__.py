"""The Celery side: application object, tasks, and what API and worker share to talk to each other."""
