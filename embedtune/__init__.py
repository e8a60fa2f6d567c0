"""Fine-tune embedding models for retrieval on your own documents, and know whether it helped.

The names to begin with, in the order of use::

    read_documents, chunk_documents     a folder -> documents -> chunks
    load_sample                         documents and questions to try everything on
    generate_questions, AnthropicLLM    chunks -> questions
    build_dataset                       chunks and questions -> corpus, queries and splits that do not leak
    load_model                          a name on the Hub, a folder or "minilm" -> a SentenceTransformer
    tune                                a model and a dataset -> a tuned retriever and its verdict, in one call
    TuningArguments, EmbeddingTrainer   the same in steps: a model and a dataset -> a tuned model
    TopKEvaluator, BM25, compare        models -> a verdict: better, worse or cannot tell
    push_to_hub, Retriever              publish it, serve it

``__init__.pyi`` lists all names in this order. They are resolved on first use, so that ``import embedtune`` loads neither
torch nor datasets. What the functions return is documented with them; the protocols that you may implement are in
``embedtune.types`` and ``embedtune.llms``.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
