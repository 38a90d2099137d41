"""For APIs: tasks are accepted on one asyncio connection, and only when there is room for them."""
