"""From chunks to questions, by a language model."""
