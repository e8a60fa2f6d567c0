"""Chunks and questions as HF Datasets: tables, splits without leaks, and the views that losses take."""

from __future__ import annotations

from embedtune.dataset.retrieval_dataset import RetrievalDataset as RetrievalDataset
from embedtune.dataset.retrieval_dataset import build_dataset as build_dataset
