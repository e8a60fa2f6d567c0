"""Tiny repositories of random weights with exactly the layout of the ones on the Hub: names of files, keys and tensors."""

from __future__ import annotations

import copy
import json
import math
import string
import struct
import warnings
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
