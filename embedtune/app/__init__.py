"""The page of ``embedtune app``: what it does, how it looks, and who may reach it."""
