"""The language model that writes MINT-IQA's explanations: a frozen Llama (Vicuna 7B v1.1), run by transformers."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from critiq_exporters.core.checkpoints import CheckpointError, fill
from critiq_exporters.families.mint_iqa.checkpoint import LANGUAGE_MODEL

if TYPE_CHECKING:
    from transformers import LlamaConfig

DType = Literal["auto", "float32", "bfloat16", "float16"]
BEAMS, LENGTH, REPETITION_PENALTY = 5, 255, 1.5
"""How the authors generate: beams, tokens at the most, and what tokens that were written before are divided by."""
_END = 2
"""Of Llama's vocabulary. The authors let it open texts too: their tokenizer has one mark for all purposes."""
_NO_TARGET = -100
_HEAD_WIDTH = 128
"""Of Llama 7B; used where the checkpoint does not hold the rotary frequencies, whose number tells it."""


class LanguageModel:
    """A causal language model that continues from embeddings which no words have."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        """``model`` and ``tokenizer`` are transformers' (``LlamaForCausalLM`` and Llama's tokenizer)."""
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.width = int(model.get_input_embeddings().weight.shape[1])

    def ids(self, text: str) -> list[int]:
        """Tokens of ``text`` after the mark that opens it."""
        return [_END, *self.tokenizer.encode(text, add_special_tokens=False)]

    def embeddings(self, prefix: Tensor, ids: Tensor) -> Tensor:
        """``prefix`` and then the embeddings of ``ids``: ``[batch, prefix + length, width]``, of the model's type.

        Args:
            prefix: float32 ``[batch, prefix, width]``.
            ids: int64 ``[batch, length]``.
        """
        words = self.model.get_input_embeddings()(ids.to(self.model.device))
        return torch.cat([prefix.to(words), words], dim=1)

    def logits(self, prefix: Tensor, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """What may come next after each place: ``[batch, prefix + length, words]``. ``mask`` hides padded ``ids``."""
        embeddings = self.embeddings(prefix, ids)
        real = torch.ones_like(ids) if mask is None else mask
        whole = F.pad(real, (prefix.shape[1], 0), value=1).to(embeddings.device)
        logits: Tensor = self.model(inputs_embeds=embeddings, attention_mask=whole).logits
        return logits

    def generate(self, prefix: Tensor, question: Sequence[int], beams: int = BEAMS, length: int = LENGTH) -> Tensor:
        """Answers to ``question`` as the authors decode them: int64 ``[batch, up to length]``, filled with end marks.

        Beam search without sampling, in which tokens that were written before become less likely.
        """
        ids = torch.tensor([list(question)] * prefix.shape[0], dtype=torch.int64)
        embeddings = self.embeddings(prefix, ids)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # that the question is not counted among the words already written: as theirs
            written: Tensor = self.model.generate(
                inputs_embeds=embeddings,
                attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.int64, device=embeddings.device),
                do_sample=False,
                num_beams=beams,
                max_new_tokens=length,
                repetition_penalty=REPETITION_PENALTY,
                length_penalty=1.0,
                eos_token_id=_END,
                pad_token_id=_END,
            )
        return written

    def texts(self, ids: Tensor) -> list[str]:
        """What was generated, as text."""
        return [self.tokenizer.decode(row, skip_special_tokens=True).strip() for row in ids.tolist()]

    def answer_loss(
        self, prefix: Tensor, questions: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
    ) -> Tensor:
        """How unlikely the model finds answers: mean negative log likelihood of a token, the authors' training loss.

        Args:
            prefix: float32 ``[batch, prefix, width]``.
            questions: ids of each question, from :meth:`ids`.
            answers: ids of each answer, without an opening mark, with the end mark.
        """
        rows = [[*question, *answer] for question, answer in zip(questions, answers, strict=True)]
        longest = max(map(len, rows))
        ids = torch.zeros(len(rows), longest, dtype=torch.int64)
        mask, targets = torch.zeros_like(ids), torch.full_like(ids, _NO_TARGET)
        for number, (row, question) in enumerate(zip(rows, questions, strict=True)):
            ids[number, : len(row)], mask[number, : len(row)] = torch.tensor(row), 1
            targets[number, len(question) : len(row)] = torch.tensor(row[len(question) :])
        logits = self.logits(prefix, ids, mask)[:, prefix.shape[1] - 1 : -1]
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten().to(logits.device))


def language_model(state: Mapping[str, Tensor], folder: Path, dtype: DType = "auto") -> LanguageModel:
    """The language model of a checkpoint, or the one in ``folder`` where the checkpoint leaves it out.

    ``folder`` holds Llama's tokenizer in any case, in transformers' layout. ``dtype`` is the type of the weights;
    ``auto`` keeps theirs.

    Raises:
        CheckpointError: ``folder`` holds no tokenizer, or no model where one is needed; the checkpoint's does not fit.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises its own, the tokenizers' and the system's
        raise CheckpointError(
            f"{folder} holds no tokenizer of a language model ({_first_line(error)}); pass --language-model with a "
            "folder of Vicuna 7B v1.1 in transformers' layout"
        ) from error
    if any(name.startswith(f"{LANGUAGE_MODEL}.") for name in state):
        return LanguageModel(_from_checkpoint(state, dtype), tokenizer)
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    except Exception as error:  # as above
        raise CheckpointError(
            f"the checkpoint leaves its language model out, and {folder} holds none: {_first_line(error)}"
        ) from error
    return LanguageModel(model, tokenizer)


def _from_checkpoint(state: Mapping[str, Tensor], dtype: DType) -> Any:
    from transformers import LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    prefix = f"{LANGUAGE_MODEL}."
    theirs = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    config = llama_config(theirs)
    with torch.device("meta"):  # seven billion numbers: checked first, then taken over without a copy
        model = LlamaForCausalLM(config)
    fill(model, theirs, {name: name for name in model.state_dict()}, [r".*\.rotary_emb\.inv_freq"])
    kind = None if dtype == "auto" else getattr(torch, dtype)
    weights = {name: value.to(kind) for name, value in theirs.items() if not name.endswith("inv_freq")}
    model.load_state_dict(weights, assign=True)
    model.model.rotary_emb = LlamaRotaryEmbedding(config)
    return model


def llama_config(state: Mapping[str, Tensor]) -> LlamaConfig:
    """Sizes of a Llama as its parameters' shapes tell them; what they do not tell is Vicuna 7B v1.1's.

    Raises:
        CheckpointError: the parameters are not a Llama's.
    """
    from transformers import LlamaConfig

    layer = "model.layers.0"
    try:
        words, width = state["model.embed_tokens.weight"].shape
        hidden = state[f"{layer}.mlp.gate_proj.weight"].shape[0]
        keys = state[f"{layer}.self_attn.k_proj.weight"].shape[0]
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"the checkpoint's language model is no Llama: {error}") from error
    rotary = state.get(f"{layer}.self_attn.rotary_emb.inv_freq")
    head = _HEAD_WIDTH if rotary is None else 2 * len(rotary)
    if not head or width % head or keys % head:
        raise CheckpointError(f"the language model's width of {width} does not divide into heads of {head}")
    layers = [int(match[1]) for name in state if (match := re.match(r"model\.layers\.(\d+)\.", name))]
    return LlamaConfig(
        vocab_size=words,
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=max(layers) + 1,
        num_attention_heads=width // head,
        num_key_value_heads=keys // head,
        max_position_embeddings=2048,
        rms_norm_eps=1e-6,
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
