"""Whether retrieval got better: exact search, metrics, an evaluator for any retriever, and a verdict with intervals."""
