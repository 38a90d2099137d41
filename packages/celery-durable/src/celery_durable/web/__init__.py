"""What a server needs that anybody reaches: who is one client, how often it may come, what is logged of it."""
