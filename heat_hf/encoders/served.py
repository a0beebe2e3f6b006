"""The embedding that a sentence encoder serves: token outputs through the checkpoint's own modules, as sentence-transformers.

Everything that asks for the embedding of a headless model takes it from here: scores, the Fisher information of the loss-aware
projection, sensitivity, distillation. Plain torch and differentiable, so sentence-transformers need not be installed.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from heat_hf.encoders.batches import TEXT_COLUMNS
from heat_hf.encoders.checkpoints.reading import told, typed
from heat_hf.encoders.checkpoints.sentence_encoder import ABOUT, MODULES, SentenceEncoder, encoder_of
from heat_hf.encoders.sentence_modules import Features, Pooling, make_module, read_json, require_known
from heat_hf.encoders.values import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)
Similarity = Callable[[Tensor, Tensor], Tensor]
SIMILARITIES: dict[str, Similarity] = {
    "cosine": lambda a, b: (nn.functional.normalize(a, dim=-1) * nn.functional.normalize(b, dim=-1)).sum(-1),
    "dot": lambda a, b: (a * b).sum(-1),
    "euclidean": lambda a, b: -(a - b).square().sum(-1).sqrt(),
    "manhattan": lambda a, b: -(a - b).abs().sum(-1),
}


class Served(nn.Module):
    """What a sentence encoder does before and after its Transformer; frozen, and in evaluation mode.

    Attributes:
        similarity: what two embeddings are compared by: cosine, dot, euclidean or manhattan.
        prompt: in front of every text.
        pooled_by_default: whether the checkpoint says nothing, and the mean of its tokens is taken.
    """

    def __init__(self, encoder: SentenceEncoder | None = None) -> None:
        """Read a checkpoint's modules; without any, tokens are averaged, as sentence-transformers does by itself.

        Raises:
            ValueError: if it has a module or a setting that is not known, or weights that are missing or not safetensors.
        """
        super().__init__()
        files = {} if encoder is None else encoder.files
        self.pooled_by_default = MODULES not in files
        entries = [] if self.pooled_by_default else json.loads(files[MODULES])[1:]
        if not self.pooled_by_default:
            require_known(json.loads(files[MODULES])[0].get("type", ""), ("Transformer",))
        self.steps = nn.ModuleList([make_module(entry, files) for entry in entries] or [Pooling({})])
        with told(f"the checkpoint's {ABOUT}", "is damaged"):
            about = read_json(files, ABOUT)
            self.similarity = typed(about, "similarity_fn_name", str, default="cosine")
            if self.similarity not in SIMILARITIES:
                raise ValueError(f"similarity_fn_name must be one of {', '.join(SIMILARITIES)}, got {shown(self.similarity)}")
            self.prompt: str = _prompt(about)
            self.truncated: int | None = typed(about, "truncate_dim", int)
        self.settings = _transformer_settings(files)
        self.eval().requires_grad_(False)

    def forward(self, tokens: Tensor, mask: Tensor | None = None, prompt_length: int = 0) -> Tensor:
        """The embedding of every row.

        Args:
            tokens: the Transformer's last hidden state, of extents (rows, tokens, hidden size).
            mask: of extents (rows, tokens), 0 for padding; None: all count.
            prompt_length: tokens of the prompt at the start of every row.

        Returns:
            Of extents (rows, dimensions).
        """
        if mask is None or mask.shape != tokens.shape[:2]:
            mask = torch.ones(tokens.shape[:2], device=tokens.device, dtype=torch.long)
        with torch.inference_mode(False):
            self.to(tokens.device)
        features: Features = {"token_embeddings": tokens, "attention_mask": mask, "prompt_length": prompt_length}
        for step in self.steps:
            features = step(features)
        if "sentence_embedding" not in features:
            raise ValueError("the checkpoint's modules have no pooling, so they give no embedding of a sentence")
        embedding: Tensor = features["sentence_embedding"]
        return embedding[..., : self.truncated]

    def compared(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """The embedding as far as the similarity depends on it: of length 1 for cosines. Extents as of a call."""
        embedding = self(tokens, mask).float()
        return nn.functional.normalize(embedding, dim=-1) if self.similarity == "cosine" else embedding

    def similarities(self, first: Tensor, second: Tensor) -> Tensor:
        """Of each pair of embeddings, as sentence-transformers compares them; of extents (rows,)."""
        return SIMILARITIES[self.similarity](first, second)

    def tokenizer(self, tokenizer: PreTrainedTokenizerBase, config: Any = None) -> PreTrainedTokenizerBase:  # noqa: ANN401
        """A copy of a tokenizer that cuts, pads and lowers as the checkpoint says.

        Args:
            tokenizer: the checkpoint's.
            config: the model's; says where rows are cut if the checkpoint does not.
        """
        served = copy.deepcopy(tokenizer)
        for name, value in (self.settings.get("processor_kwargs") or self.settings.get("tokenizer_args") or {}).items():
            if name in ("padding_side", "truncation_side", "model_max_length"):
                setattr(served, name, value)
        longest, positions = self.settings.get("max_seq_length"), getattr(config, "max_position_embeddings", -1)
        if longest:
            served.model_max_length = int(longest)
        elif isinstance(positions, int) and positions != -1:
            served.model_max_length = min(served.model_max_length, positions)
        if self.settings.get("do_lower_case"):
            _lower(served)
        return served

    def encode(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> tuple[Any, int]:
        """Model inputs of texts with the prompt in front, and the prompt's length in tokens.

        Args:
            tokenizer: made by `tokenizer`.
            texts: without the prompt.
        """
        options: dict[str, Any] = {"padding": True, "truncation": True, "return_tensors": "pt"}
        inputs = tokenizer([self.prompt + text for text in texts], **options)
        if not self.prompt:
            return inputs, 0
        ids = tokenizer([self.prompt], **options)["input_ids"][0].tolist()
        return inputs, len(ids) - (ids[-1] in tokenizer.all_special_ids)

    def prompted(self, rows: Iterable[Any]) -> Any:  # noqa: ANN401
        """Rows to calibrate or train on, their texts with the prompt in front; rows of token ids are as they were."""
        return rows if not self.prompt else [self._prompted(row) for row in rows]

    def _prompted(self, row: Any) -> Any:  # noqa: ANN401
        if isinstance(row, str):
            return self.prompt + row
        if not isinstance(row, Mapping) or "input_ids" in row:
            return row
        texts = {name: self.prompt + row[name] for name in TEXT_COLUMNS if isinstance(row.get(name), str)}
        return {**row, **texts}


def served_by(model: Any) -> Served:  # noqa: ANN401
    """What serves a model's embeddings: what `serve` set, else what the checkpoint has that it was loaded from.

    A model that was made from a configuration has none: its tokens are averaged.

    Args:
        model: of Transformers, or wrapped by PEFT.

    Raises:
        ValueError: as `Served`.
    """
    known = getattr(model, "_served", None)
    if isinstance(known, Served):
        return known
    return serve(model, encoder_of(model))


def serve(model: Any, encoder: SentenceEncoder | None) -> Served:  # noqa: ANN401
    """Say what serves a model's embeddings; a property of the object, not saved with it, and copied with it.

    Args:
        model: a headless model.
        encoder: of `sentence_encoder`; None for the mean of the tokens.

    Raises:
        ValueError: as `Served`.
    """
    served = Served(encoder)
    object.__setattr__(model, "_served", served)  # no submodule: it is not among the model's weights
    return served


def _prompt(about: Mapping[str, Any]) -> str:
    prompts, name = typed(about, "prompts", dict, default={}), typed(about, "default_prompt_name", str)
    if name is not None and name not in prompts:
        raise ValueError(f"default_prompt_name must be one of the checkpoint's prompts {sorted(prompts)}, got {name!r}")
    return "" if name is None else typed(prompts, name, str, default="")


def _transformer_settings(files: Mapping[str, bytes]) -> dict[str, Any]:
    """Of the Transformer: where rows are cut, and which of its outputs is taken."""
    name = next((name for name in files if name.startswith("sentence_") and name.endswith("_config.json")), "")
    with told(f"the checkpoint's {name}", "is damaged"):
        settings = read_json(files, name)
        for number, kind in (
            ("max_seq_length", int),
            ("do_lower_case", bool),
            ("processor_kwargs", dict),
            ("tokenizer_args", dict),
        ):
            typed(settings, number, kind)
        text = (settings.get("modality_config") or {}).get("text") or {}
        asked = (text.get("method", "forward"), text.get("method_output_name", "last_hidden_state"))
        taken = settings.get("module_output_name", "token_embeddings")
    if asked != ("forward", "last_hidden_state") or taken != "token_embeddings":
        raise ValueError(f"{name} must take last_hidden_state of forward as token_embeddings, got {asked} as {taken!r}")
    return settings


def _lower(tokenizer: PreTrainedTokenizerBase) -> None:
    from tokenizers import normalizers

    backend = tokenizer.backend_tokenizer
    own = backend.normalizer
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *([] if own is None else [own])])
