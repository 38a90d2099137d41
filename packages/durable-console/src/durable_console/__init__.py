"""What people operate an application of celery-durable with. Nothing here imports that application."""
