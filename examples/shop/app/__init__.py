"""The shop: an API that takes orders, and tasks that price them."""
