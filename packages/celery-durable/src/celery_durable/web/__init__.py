"""What a server needs that strangers reach: who counts as one client, how often it may come, what is logged of it."""
