"""From documents on disk to chunks of bounded length."""
