"""Prompt segmentation: what a prompt says about style, content and atmosphere, put after the prompt itself.

The paper lets a LLaMA write the three ("raw prompt + LLM-refined prompt", section on prompt segmentation) and gives
neither its instruction nor the form of the result; both are our own here. Without a language model, or where its answer
cannot be read, rules do it: the prompt is split at its separators, and known words tell what a part is about. The rules
give the same for the same prompt always.

    python -m critiq_exporters.families.mint_iqa.segmentation "a gloomy forest, oil painting"
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from critiq.cli.running import run
from critiq_exporters.core.checkpoints import CheckpointError

DEFAULT_STYLE = "realistic"
"""The paper's, for prompts that name none."""
Ask = Callable[[str], str]
"""A language model: an instruction to its answer."""

_INSTRUCTION = """Describe what this prompt of an image generator asks for. Answer with exactly three lines.
Style: words for the style of the whole image, separated by commas
Content: nouns with their adjectives, separated by commas
Atmosphere: words for mood and feeling, separated by commas

Prompt: {prompt}
"""
_ANSWER = re.compile(r"^\W*(style|content|atmosphere)\W*:[ \t]*(.*)$", re.IGNORECASE | re.MULTILINE)
_SEPARATORS = re.compile(r"[,;|\n]+|\.(?=\s|$)|\s[-–—]\s")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_MEDIA = _words(
    """animation anime artwork cartoon collage comic drawing engraving etching fresco graffiti illustration logo manga
    mosaic mural painting photo photograph photography picture pixel-art portrait poster render rendering sculpture
    sketch still watercolor watercolour woodcut"""
)
"""What a picture can be one of: "a painting of ..."."""
_STYLES = (_MEDIA - _words("picture portrait still")) | _words(
    """3d 4k 8k abstract artistic artstation baroque bauhaus bokeh cgi charcoal cinematic cubism cubist cyberpunk
    digital-art expressionism expressionist fantasy fashion fiction futuristic ghibli gothic hd hdr hyperrealistic
    impressionism impressionist ink isometric lowpoly minimalism minimalist monochrome noir octane oil oils origami
    pastel photorealistic pixar pixelated pop-art realism realistic renaissance retro rococo sci-fi steampunk surreal
    surrealism surrealist texture textured unreal vaporwave vintage voxel"""
)
_MOODS = _words(
    """angry anxious atmospheric bleak blissful calm carefree cheerful cold cosy cozy creepy dark depressing desolate
    dramatic dreamlike dreamy eerie elegant enchanting epic ethereal exciting festive foggy frightening gloomy happy
    haunting hopeful horrifying idyllic intimate joyful joyous lively lonely magical majestic melancholic melancholy
    misty moody mysterious nostalgic ominous peaceful playful quiet romantic sad scary serene sinister sombre somber
    spooky tense terrifying tragic tranquil uplifting vibrant warm whimsical"""
)
_OF_MOOD = _words("a an and atmosphere feel feeling light lighting mood the tone tones very vibe with")
_DETAIL = re.compile(
    r"((very|highly|extremely|ultra|super|intricate|intricately|insanely)[\s-]*){0,3}detail(s|ed)?", re.IGNORECASE
)
_IN_STYLE = re.compile(
    r"\bin ((the |an? )?style of (an? )?(?P<named>.{1,80})|(an? )?(?P<kind>[^,]{1,40}) style)$", re.IGNORECASE
)
_BY = re.compile(r"(art(work)? )?by \w", re.IGNORECASE)
_OF = re.compile(
    rf"(an? |the )?(?P<style>([\w-]+ ){{0,3}}({'|'.join(sorted(_MEDIA))})s?) (of|showing) (?P<rest>.+)", re.IGNORECASE
)
_WORD = re.compile(r"[\w'-]+")


@dataclass(frozen=True)
class Segments:
    """Parts of a prompt, in its order."""

    style: tuple[str, ...]
    content: tuple[str, ...]
    atmosphere: tuple[str, ...]
    source: Literal["language model", "rules"]

    def after(self, prompt: str) -> str:
        """The refined prompt: the raw one, then the three parts. What is empty is left out."""
        parts = {"style": self.style, "content": self.content, "atmosphere": self.atmosphere}
        told = "; ".join(f"{name}: {', '.join(words)}" for name, words in parts.items() if words)
        return f"{prompt.rstrip(' .')}. {told}"


def segment(prompt: str, ask: Ask | None = None) -> Segments:
    """What ``prompt`` says about style, content and atmosphere.

    ``ask`` is a language model; its answer is used if it names all three, and content is not empty. Left out, or with
    another answer, the rules decide. A prompt without a style is realistic.

    Raises:
        ValueError: the prompt is empty.
    """
    if not prompt.strip():
        raise ValueError("the prompt is empty: there is nothing to segment")
    answered = _read_answer(ask(_INSTRUCTION.format(prompt=prompt))) if ask is not None else None
    return answered or _by_rules(prompt)


def language_model(folder: Path, length: int = 128) -> Ask:
    """A causal language model of transformers in ``folder`` that answers without sampling, ``length`` tokens at most.

    Raises:
        CheckpointError: there is none.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True)
    except Exception as error:  # transformers raises its own, the tokenizers' and the system's
        raise CheckpointError(f"{folder} holds no language model and tokenizer of transformers: {error}") from error

    def ask(instruction: str) -> str:
        ids = torch.tensor([tokenizer.encode(instruction)])
        with torch.inference_mode():
            written = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=length)
        return str(tokenizer.decode(written[0, ids.shape[1] :].tolist(), skip_special_tokens=True))

    return ask


def _read_answer(answer: str) -> Segments | None:
    found: dict[str, tuple[str, ...]] = {}
    for name, words in _ANSWER.findall(answer):
        listed = (word.strip(" .\"'") for word in words.split(","))
        found.setdefault(name.lower(), tuple(word for word in listed if word and word.lower() not in ("none", "n/a")))
    if len(found) < 3 or not found["content"]:
        return None
    return Segments(found["style"] or (DEFAULT_STYLE,), found["content"], found["atmosphere"], "language model")


def _by_rules(prompt: str) -> Segments:
    style: list[str] = []
    content: list[str] = []
    atmosphere: list[str] = []
    for part in filter(None, (part.strip() for part in _SEPARATORS.split(prompt))):
        rest = part
        if tail := _IN_STYLE.search(rest):
            style.append((tail["named"] or tail["kind"]).strip())
            rest = rest[: tail.start()].strip()
        if head := _OF.match(rest):
            style.append(head["style"])
            rest = head["rest"]
        words = [word.lower() for word in _WORD.findall(rest)]
        atmosphere += [word for word in words if word in _MOODS]
        if not words or set(words) <= _MOODS | _OF_MOOD:
            continue
        if _BY.match(rest) or _DETAIL.fullmatch(rest) or (len(words) <= 3 and not _STYLES.isdisjoint(words)):
            style.append(rest)
        else:
            content.append(rest)
    return Segments(_once(style) or (DEFAULT_STYLE,), _once(content), _once(atmosphere), "rules")


def _once(words: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(words))


def command(
    prompts: Annotated[list[str], typer.Argument(help="Prompts to refine.")],
    language_model_folder: Annotated[
        Path | None, typer.Option("--language-model", help="Folder of a model of transformers; rules where left out.")
    ] = None,
) -> None:
    """Print prompts with their style, content and atmosphere after them, one a line."""
    ask = language_model(language_model_folder) if language_model_folder is not None else None
    for prompt in prompts:
        typer.echo(segment(prompt, ask).after(prompt))


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit status: 0 done, 2 bad input."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(command)
    return run(app, "mint_iqa.segmentation", arguments, bad_input=(CheckpointError, ValueError))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
