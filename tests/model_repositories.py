"""Tiny repositories of random weights with exactly the layout of the ones on the Hub: names of files, keys and tensors."""

from __future__ import annotations

import copy
import itertools
import json
import math
import string
import struct
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

REFUSES_TO_RUN = "raise RuntimeError('code of the repository was executed')\n"

# gte-Qwen2

GTE_PROMPT = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: "
GTE_CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "auto_map": {
        "AutoModel": "modeling_qwen.Qwen2Model",
        "AutoModelForCausalLM": "modeling_qwen.Qwen2ForCausalLM",
        "AutoModelForSequenceClassification": "modeling_qwen.Qwen2ForSequenceClassification",
    },
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "hidden_act": "silu",
    "hidden_size": 1536,
    "initializer_range": 0.02,
    "intermediate_size": 8960,
    "max_position_embeddings": 131072,
    "max_window_layers": 21,
    "model_type": "qwen2",
    "num_attention_heads": 12,
    "num_hidden_layers": 28,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "transformers_version": "4.41.2",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151646,
}
GTE_TINY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "max_window_layers": 1,
    "max_position_embeddings": 512,
}


def write_json(folder, name, content):
    path = Path(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")


def gte_shapes(config):
    """Names and shapes of the tensors in the checkpoint, with the prefix and the head that the Hub's has."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    keys = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        shapes |= {
            f"{layer}.input_layernorm.weight": (hidden,),
            f"{layer}.mlp.down_proj.weight": (hidden, inner),
            f"{layer}.mlp.gate_proj.weight": (inner, hidden),
            f"{layer}.mlp.up_proj.weight": (inner, hidden),
            f"{layer}.post_attention_layernorm.weight": (hidden,),
            f"{layer}.self_attn.k_proj.bias": (keys,),
            f"{layer}.self_attn.k_proj.weight": (keys, hidden),
            f"{layer}.self_attn.o_proj.weight": (hidden, hidden),
            f"{layer}.self_attn.q_proj.bias": (hidden,),
            f"{layer}.self_attn.q_proj.weight": (hidden, hidden),
            f"{layer}.self_attn.v_proj.bias": (keys,),
            f"{layer}.self_attn.v_proj.weight": (keys, hidden),
        }
    return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (config["vocab_size"], hidden)}


def random_tensors(shapes, *, seed=0, scale=0.2):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator) * scale + (1.0 if "norm" in name and "bias" not in name else 0.0)
        for name, shape in shapes.items()
    }


def write_shards(folder, tensors, *, num_shards=2):
    """Two shards and the index, as the Hub's checkpoint has."""
    names = list(tensors)
    size = -(-len(names) // num_shards)
    weight_map = {}
    for n in range(num_shards):
        file = f"model-{n + 1:05d}-of-{num_shards:05d}.safetensors"
        part = names[n * size : (n + 1) * size]
        save_file({name: tensors[name].contiguous() for name in part}, Path(folder, file), metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    write_json(folder, "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def byte_level_tokenizer():
    """A token for each byte, and Qwen2's three special tokens; no post-processor, as in the repository."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(symbols)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")])
    return tokenizer


def gte_qwen2_repository(folder, *, seed=0, **config):
    """A tiny Alibaba-NLP/gte-Qwen2-1.5B-instruct; returns its tensors."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = byte_level_tokenizer()
    eos = tokenizer.token_to_id("<|endoftext|>")
    ids = {"bos_token_id": eos, "eos_token_id": eos, "vocab_size": tokenizer.get_vocab_size()}
    config = GTE_CONFIG | GTE_TINY | ids | config
    write_json(folder, "config.json", config)
    tensors = random_tensors(gte_shapes(config), seed=seed)
    write_shards(folder, tensors)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder, "vocab.json", tokenizer.get_vocab(with_added_tokens=False))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    write_json(folder, "added_tokens.json", {t: tokenizer.token_to_id(t) for t in ("<|endoftext|>", "<|im_start|>")})
    special = {"content": "<|endoftext|>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    write_json(
        folder,
        "tokenizer_config.json",
        {
            "add_eos_token": True,
            "add_prefix_space": False,
            "added_tokens_decoder": {
                str(tokenizer.token_to_id(t)): special | {"content": t, "special": True}
                for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
            },
            "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
            "auto_map": {"AutoTokenizer": ["tokenization_qwen.Qwen2Tokenizer", "tokenization_qwen.Qwen2TokenizerFast"]},
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|endoftext|>",
            "errors": "replace",
            "model_max_length": 32768,
            "pad_token": "<|endoftext|>",
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    )
    write_json(
        folder,
        "special_tokens_map.json",
        {
            "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
            "eos_token": special,
            "pad_token": special,
        },
    )
    write_json(folder, "generation_config.json", {"bos_token_id": eos, "eos_token_id": eos})
    write_json(
        folder,
        "modules.json",
        [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
        ],
    )
    write_json(
        folder,
        "1_Pooling/config.json",
        {
            "word_embedding_dimension": config["hidden_size"],
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": False,
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
            "pooling_mode_weightedmean_tokens": False,
            "pooling_mode_lasttoken": True,
            "include_prompt": True,
        },
    )
    write_json(folder, "sentence_bert_config.json", {"max_seq_length": 32768, "do_lower_case": False})
    write_json(
        folder,
        "config_sentence_transformers.json",
        {
            "__version__": {"sentence_transformers": "2.7.0", "transformers": "4.41.2", "pytorch": "2.2.2"},
            "prompts": {"query": GTE_PROMPT},
            "default_prompt_name": None,
        },
    )
    for name in ("modeling_qwen.py", "tokenization_qwen.py"):
        (folder / name).write_text(REFUSES_TO_RUN)
    return tensors


def header_only_safetensors(path, shapes, *, dtype="F32"):
    """A safetensors file of full size whose content takes no space on disk: names and shapes without weights."""
    size = {"F32": 4, "BF16": 2}[dtype]
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        end = offset + size * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with Path(path).open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)


# jina-embeddings-v3

JINA_TASKS = ["retrieval.query", "retrieval.passage", "separation", "classification", "text-matching"]
JINA_INSTRUCTIONS = {
    "retrieval.query": "Represent the query for retrieving evidence documents: ",
    "retrieval.passage": "Represent the document for retrieval: ",
    "separation": "",
    "classification": "",
    "text-matching": "",
}
JINA_CODE = "jinaai/xlm-roberta-flash-implementation--"
JINA_CONFIG = {
    "_name_or_path": "jinaai/jina-embeddings-v3",
    "architectures": ["XLMRobertaModel"],
    "attention_probs_dropout_prob": 0.1,
    "auto_map": {
        "AutoConfig": f"{JINA_CODE}configuration_xlm_roberta.XLMRobertaFlashConfig",
        "AutoModel": f"{JINA_CODE}modeling_lora.XLMRobertaLoRA",
        "AutoModelForMaskedLM": f"{JINA_CODE}modeling_xlm_roberta.XLMRobertaForMaskedLM",
        "AutoModelForPreTraining": f"{JINA_CODE}modeling_xlm_roberta.XLMRobertaForPreTraining",
    },
    "bos_token_id": 0,
    "classifier_dropout": None,
    "emb_pooler": None,
    "eos_token_id": 2,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 1024,
    "initializer_range": 0.02,
    "intermediate_size": 4096,
    "layer_norm_eps": 1e-05,
    "load_trained_adapters": True,
    "lora_adaptations": JINA_TASKS,
    "lora_alpha": 1,
    "lora_dropout_p": 0.0,
    "lora_main_params_trainable": False,
    "lora_rank": 4,
    "matryoshka_dimensions": [32, 64, 128, 256, 512, 768, 1024],
    "max_position_embeddings": 8194,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "output_past": True,
    "pad_token_id": 1,
    "position_embedding_type": "rotary",
    "rotary_emb_base": 20000.0,
    "task_instructions": JINA_INSTRUCTIONS,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.44.2",
    "truncate_dim": None,
    "type_vocab_size": 1,
    "use_cache": True,
    "use_flash_attn": True,
    "use_reg_tokens": False,
    "vocab_size": 250002,
}
JINA_TINY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "max_position_embeddings": 1024,
    "torch_dtype": "float32",
}


def jina_original_shapes(config):
    """Names and shapes of the original checkpoint: each weight with the LoRA of all tasks as its parametrization."""
    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    tasks, rank = len(config["lora_adaptations"]), config["lora_rank"]
    shapes = {}

    def parametrized(name, rows, columns, *, embedding=False):
        weight = f"roberta.{name}.parametrizations.weight"
        shapes[f"{weight}.original"] = (rows, columns)
        shapes[f"{weight}.0.lora_A"] = (tasks, rows, rank) if embedding else (tasks, rank, columns)
        shapes[f"{weight}.0.lora_B"] = (tasks, rank, columns) if embedding else (tasks, rows, rank)
        if not embedding:
            shapes[f"roberta.{name}.bias"] = (rows,)

    def norm(name):
        shapes[f"roberta.{name}.weight"] = shapes[f"roberta.{name}.bias"] = (hidden,)

    parametrized("embeddings.word_embeddings", vocabulary, hidden, embedding=True)
    parametrized("embeddings.token_type_embeddings", config["type_vocab_size"], hidden, embedding=True)
    norm("emb_ln")
    for i in range(config["num_hidden_layers"]):
        layer = f"encoder.layers.{i}"
        parametrized(f"{layer}.mixer.Wqkv", 3 * hidden, hidden)
        parametrized(f"{layer}.mixer.out_proj", hidden, hidden)
        norm(f"{layer}.norm1")
        parametrized(f"{layer}.mlp.fc1", inner, hidden)
        parametrized(f"{layer}.mlp.fc2", hidden, inner)
        norm(f"{layer}.norm2")
    parametrized("pooler.dense", hidden, hidden)
    return shapes


def unigram_tokenizer():
    """XLM-RoBERTa's kind of tokenizer: <s> text </s>, over the printable characters."""
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "\u2581", *string.printable.strip()]
    tokenizer = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=3, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ("<s>", "<pad>", "</s>", "<unk>")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


def write_jina_tokenizer(folder):
    tokenizer = unigram_tokenizer()
    tokenizer.save(str(Path(folder, "tokenizer.json")))
    names = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "sep_token": "</s>"}
    names["unk_token"] = "<unk>"
    config = {"model_max_length": 8194, "tokenizer_class": "XLMRobertaTokenizer", "clean_up_tokenization_spaces": True}
    write_json(folder, "tokenizer_config.json", config | names)
    write_json(folder, "special_tokens_map.json", names)
    return tokenizer.get_vocab_size()


def write_jina_sentence_transformers_files(folder):
    write_json(
        folder,
        "modules.json",
        [
            {"idx": 0, "name": "transformer", "path": "", "type": "custom_st.Transformer", "kwargs": ["task"]},
            {"idx": 1, "name": "pooler", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            {"idx": 2, "name": "normalizer", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
        ],
    )
    write_json(
        folder,
        "config_sentence_transformers.json",
        {
            "__version__": {"sentence_transformers": "3.1.0", "transformers": "4.41.2", "pytorch": "2.3.1+cu121"},
            "prompts": JINA_INSTRUCTIONS,
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    )
    Path(folder, "custom_st.py").write_text(REFUSES_TO_RUN)


def jina_original_repository(folder, *, seed=0, **config):
    """A tiny jinaai/jina-embeddings-v3; returns its configuration and its tensors."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = JINA_CONFIG | JINA_TINY | {"vocab_size": write_jina_tokenizer(folder)} | config
    write_json(folder, "config.json", config)
    tensors = random_tensors(jina_original_shapes(config), seed=seed)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_jina_sentence_transformers_files(folder)
    return config, tensors


def jina_hf_repository(folder, *, seed=0, tasks=JINA_TASKS, custom_code=False):
    """A tiny jinaai/jina-embeddings-v3-hf, written by transformers and peft themselves."""
    from peft import LoraConfig, get_peft_model
    from transformers import JinaEmbeddingsV3Config, JinaEmbeddingsV3Model

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = JINA_TINY.keys() - {"torch_dtype"}
    config = JinaEmbeddingsV3Config(
        vocab_size=write_jina_tokenizer(folder),
        lora_adaptations=JINA_TASKS,
        task_instructions=JINA_INSTRUCTIONS,
        **{name: JINA_TINY[name] for name in names},
    )
    torch.manual_seed(seed)
    model = JinaEmbeddingsV3Model(config)
    randomize(model, seed)
    model.save_pretrained(folder)
    targets = [
        "word_embeddings",
        "token_type_embeddings",
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "fc1",
        "fc2",
        "dense",
    ]
    for number, task in enumerate(tasks):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapter = get_peft_model(copy.deepcopy(model), LoraConfig(r=4, lora_alpha=1, target_modules=targets))
            randomize(adapter, seed + 1 + number, only="lora_")
            name = task.replace(".", "_").replace("-", "_")
            adapter.save_pretrained(folder / name, save_embedding_layers=False)
    if custom_code:
        write_jina_sentence_transformers_files(folder)


def randomize(model, seed, *, only="", scale=0.3):
    """Fill the parameters with numbers large enough for every one of them to matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if only in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)


def load_family(folder, **options):
    """Load with the loader that takes these options: a family's own, or load_model."""
    import embedtune as et

    if {"mode", "train"} & options.keys():
        return et.load_jina_v3(folder, **options)
    return (et.load_gte_qwen2 if {"attention", "task"} & options.keys() else et.load_model)(folder, **options)


# One table of the models that people tune

WEB_SEARCH = "Given a web search query, retrieve relevant passages that answer the query"
BGE_QUERY = "Represent this sentence for searching relevant passages: "
SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 2}
CAUSAL = SMALL | {"num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 256}


@dataclass(frozen=True)
class Layout:
    """What the files of a repository say, and what load_model makes of them.

    ``config`` is transformers' class and its settings; ``saved_as`` the name under ``architectures``; ``files`` the prompts in
    config_sentence_transformers.json; ``prompts`` those after loading; ``dense`` the sizes of the Dense modules.
    """

    config: tuple[str, dict]
    pooling: str
    tokenizer: str = "bert"
    saved_as: str | None = None
    files: dict = field(default_factory=dict)
    prompts: tuple[str, str] = ("", "")
    normalize: bool = True
    dense: tuple[int, ...] = ()
    extra: dict = field(default_factory=dict)  # in config.json
    tokenizer_config: dict = field(default_factory=dict)
    repaired: bool = False  # plain sentence-transformers computes other embeddings


def _bert(**options):
    return "BertConfig", SMALL | {"max_position_embeddings": 128} | options


def _xlm_roberta(**options):
    return "XLMRobertaConfig", SMALL | {
        "max_position_embeddings": 130,
        "pad_token_id": 1,
        "type_vocab_size": 1,
    } | options


def _modernbert():
    settings = SMALL | {"max_position_embeddings": 256, "global_attn_every_n_layers": 2, "local_attention": 8}
    return "ModernBertConfig", settings | {"pad_token_id": 0, "bos_token_id": 2, "cls_token_id": 2, "sep_token_id": 3}


_QWEN3_PROMPTS = {"query": f"Instruct: {WEB_SEARCH}\nQuery:", "document": ""}
_V5_PROMPTS = {"query": "Query: ", "document": "Document: "}
_GEMMA_PROMPTS = {"query": "task: search result | query: ", "document": "title: none | text: "}

_GEMMA2_TEXT = CAUSAL | {
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 8,
    "hidden_size_per_layer_input": 4,
    "embedding_dim": 12,
    "global_head_dim": 16,
    "num_global_key_value_heads": 1,
}
_GEMMA2_VISION = SMALL | {"model_type": "gemma4_vision", "num_key_value_heads": 2, "head_dim": 8, "global_head_dim": 8}
_GEMMA2_AUDIO = {"model_type": "gemma4_audio", "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
_GEMMA2_AUDIO |= {"output_proj_dims": 8, "subsampling_conv_channels": [8, 4]}

LAYOUTS = {
    "Qwen/Qwen3-Embedding-0.6B": Layout(
        ("Qwen3Config", CAUSAL),
        "lasttoken",
        "qwen",
        saved_as="Qwen3ForCausalLM",
        files=_QWEN3_PROMPTS,
        prompts=tuple(_QWEN3_PROMPTS.values()),
    ),
    "jinaai/jina-embeddings-v5-text-small-retrieval": Layout(
        ("Qwen3Config", CAUSAL), "lasttoken", "qwen", files=_V5_PROMPTS, prompts=tuple(_V5_PROMPTS.values())
    ),
    "jinaai/jina-embeddings-v5-text-nano-retrieval": Layout(
        ("EuroBertConfig", CAUSAL), "lasttoken", "qwen", files=_V5_PROMPTS, prompts=tuple(_V5_PROMPTS.values())
    ),
    "google/embeddinggemma-300m": Layout(
        ("Gemma3TextConfig", CAUSAL | {"use_bidirectional_attention": True, "sliding_window": 8}),
        "mean",
        "gemma",
        files=_GEMMA_PROMPTS,
        prompts=tuple(_GEMMA_PROMPTS.values()),
        dense=(16, 32, 16),
    ),
    "google/embeddinggemma-2": Layout(
        (
            "EmbeddingGemma2Config",
            {"text_config": _GEMMA2_TEXT, "vision_config": _GEMMA2_VISION, "audio_config": _GEMMA2_AUDIO},
        ),
        "mean",
        "gemma",
        files=_GEMMA_PROMPTS,
        prompts=tuple(_GEMMA_PROMPTS.values()),
    ),
    "nomic-ai/modernbert-embed-base": Layout(
        _modernbert(), "mean", saved_as="ModernBertModel", prompts=("search_query: ", "search_document: ")
    ),
    "Alibaba-NLP/gte-modernbert-base": Layout(_modernbert(), "cls", normalize=False),
    "BAAI/bge-m3": Layout(_xlm_roberta(), "cls", "xlm-roberta"),
    "BAAI/bge-base-en-v1.5": Layout(_bert(), "cls", prompts=(BGE_QUERY, "")),
    "intfloat/multilingual-e5-small": Layout(_bert(), "mean", "xlm-roberta", prompts=("query: ", "passage: ")),
    "Snowflake/snowflake-arctic-embed-m-v1.5": Layout(
        _bert(), "cls", files={"query": BGE_QUERY}, prompts=(BGE_QUERY, "")
    ),
    "Snowflake/snowflake-arctic-embed-l-v2.0": Layout(
        _xlm_roberta(), "cls", "xlm-roberta", files={"query": "query: "}, prompts=("query: ", "")
    ),
    "sentence-transformers/all-mpnet-base-v2": Layout(
        ("MPNetConfig", SMALL | {"max_position_embeddings": 130, "pad_token_id": 1}),
        "mean",
        "xlm-roberta",
        saved_as="MPNetForMaskedLM",
    ),
    "nomic-ai/nomic-embed-text-v1.5": Layout(
        ("NomicBertConfig", SMALL | {"max_position_embeddings": 128}),
        "mean",
        prompts=("search_query: ", "search_document: "),
        extra={"auto_map": {"AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel"}},
    ),
    "alibaba-nlp-community/gte-multilingual-base": Layout(
        ("GteConfig", SMALL | {"max_position_embeddings": 128}), "cls", "xlm-roberta"
    ),
    "intfloat/e5-mistral-7b-instruct": Layout(
        ("MistralConfig", CAUSAL | {"sliding_window": None}),
        "lasttoken",
        "llama",
        prompts=(f"Instruct: {WEB_SEARCH}\nQuery: ", ""),
        tokenizer_config={"add_bos_token": True, "add_eos_token": True},
        repaired=True,
    ),
}


def _template(tokenizer, single):
    names = [piece for piece in single.split() if piece != "$A"]
    return processors.TemplateProcessing(single=single, special_tokens=[(n, tokenizer.token_to_id(n)) for n in names])


def _layout_tokenizer(kind):
    """The tokenizer, the settings beside it, and the ids of its special tokens."""
    if kind == "bert":
        from conftest import build_tokenizer

        names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        return build_tokenizer().backend_tokenizer, names | {"tokenizer_class": "PreTrainedTokenizerFast"}
    if kind == "xlm-roberta":
        names = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "sep_token": "</s>"}
        return unigram_tokenizer(), names | {"unk_token": "<unk>", "tokenizer_class": "PreTrainedTokenizerFast"}
    if kind == "qwen":  # the text's end is the padding token, not the end-of-turn token that is called eos_token
        tokenizer = byte_level_tokenizer()
        tokenizer.post_processor = _template(tokenizer, "$A <|endoftext|>")
        names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
        return tokenizer, names | {"add_bos_token": False, "tokenizer_class": "PreTrainedTokenizerFast"}
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = {"gemma": ["<pad>", "<eos>", "<bos>", "<unk>"], "llama": ["<unk>", "<s>", "</s>"]}[kind]
    tokenizer = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate([*special, *symbols])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    bos, eos = ("<bos>", "<eos>") if kind == "gemma" else ("<s>", "</s>")
    # e5-mistral's file begins a text and does not end it: that was the task of transformers 4.
    tokenizer.post_processor = _template(tokenizer, f"{bos} $A {eos}" if kind == "gemma" else f"{bos} $A")
    names = {"bos_token": bos, "eos_token": eos, "pad_token": "<pad>" if kind == "gemma" else "</s>"}
    return tokenizer, names | {"unk_token": "<unk>", "tokenizer_class": "PreTrainedTokenizerFast"}


def layout_repository(folder, name, *, seed=0):
    """Write a tiny copy of a repository of `LAYOUTS`, as a folder of its name; returns the folder."""
    import transformers

    layout = LAYOUTS[name]
    folder = Path(folder, name.rpartition("/")[2])
    folder.mkdir(parents=True)
    tokenizer, names = _layout_tokenizer(layout.tokenizer)
    kind, settings = layout.config
    ids = {f"{role}_token_id": tokenizer.token_to_id(names.get(f"{role}_token", "")) for role in ("pad", "bos", "eos")}
    vocabulary = {"vocab_size": tokenizer.get_vocab_size()} | ids
    if "text_config" in settings:
        settings = settings | {"text_config": settings["text_config"] | vocabulary}
        vocabulary = {f"{part}_token_id": 5 + i for i, part in enumerate(("image", "video", "audio"))}
    config = getattr(transformers, kind)(**(settings | vocabulary))
    torch.manual_seed(seed)
    model = transformers.AutoModel.from_config(config)
    randomize(model, seed, scale=0.1)
    model.save_pretrained(folder)
    saved = json.loads((folder / "config.json").read_text())
    write_json(
        folder, "config.json", saved | ({"architectures": [layout.saved_as]} if layout.saved_as else {}) | layout.extra
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder, "tokenizer_config.json", names | {"model_max_length": 128} | layout.tokenizer_config)
    write_json(folder, "sentence_bert_config.json", {"max_seq_length": 128, "do_lower_case": False})
    write_json(folder, "config_sentence_transformers.json", {"prompts": layout.files, "similarity_fn_name": "cosine"})
    _write_modules(folder, layout, settings.get("text_config", settings))
    return folder


# The folder of the static embedding, the name of its table, and the modules after it.
STATIC_LAYOUTS = {
    "sentence-transformers/static-retrieval-mrl-en-v1": ("0_StaticEmbedding", "embedding.weight", []),
    "minishlab/potion-retrieval-32M": (".", "embeddings", ["Normalize"]),
}


def static_repository(folder, name, *, seed=0):
    """Write a tiny copy of a repository of `STATIC_LAYOUTS`, as a folder of its name; returns the folder."""
    place, key, others = STATIC_LAYOUTS[name]
    folder = Path(folder, name.rpartition("/")[2])
    (folder / place).mkdir(parents=True)
    tokenizer, _ = _layout_tokenizer("bert")
    tokenizer.save(str(folder / place / "tokenizer.json"))
    table = random_tensors({key: (tokenizer.get_vocab_size(), 16)}, seed=seed)
    save_file(table, folder / place / "model.safetensors", metadata={"format": "pt"})
    if key == "embeddings":
        config = {"model_type": "model2vec", "architectures": ["StaticModel"], "hidden_dim": 16, "seq_length": 1000000}
        write_json(folder, "config.json", config | {"apply_zipf": True, "normalize": True})
    modules = [("StaticEmbedding", place), *((kind, f"{i}_{kind}") for i, kind in enumerate(others, start=1))]
    write_json(
        folder,
        "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (kind, path) in enumerate(modules)
        ],
    )
    write_json(folder, "config_sentence_transformers.json", {"prompts": {}, "similarity_fn_name": "cosine"})
    return folder


def _write_modules(folder, layout, settings):
    width = layout.dense[0] if layout.dense else settings.get("embedding_dim", settings["hidden_size"])
    kinds = ["Transformer", "Pooling", *["Dense"] * (len(layout.dense) - 1), *["Normalize"] * layout.normalize]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    write_json(folder, "modules.json", modules)
    flags = {f"pooling_mode_{mode}": False for mode in ("cls_token", "mean_tokens", "max_tokens", "lasttoken")}
    chosen = {"cls": "cls_token", "mean": "mean_tokens"}.get(layout.pooling, layout.pooling)
    pooling = {"word_embedding_dimension": width} | flags | {f"pooling_mode_{chosen}": True, "include_prompt": True}
    write_json(folder, "1_Pooling/config.json", pooling)
    for number, (rows, columns) in enumerate(itertools.pairwise(layout.dense), start=2):
        activation = "torch.nn.modules.linear.Identity"
        dense = {"in_features": rows, "out_features": columns, "bias": False, "activation_function": activation}
        write_json(folder, f"{number}_Dense/config.json", dense)
        weight = random_tensors({"linear.weight": (columns, rows)}, seed=number)
        save_file(weight, folder / f"{number}_Dense/model.safetensors", metadata={"format": "pt"})
