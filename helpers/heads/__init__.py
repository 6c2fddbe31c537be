"""What heads do: their roles, and what happens without them."""
