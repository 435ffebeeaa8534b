"""What differs between Moondream 2's published generations, none of which the checkpoint itself says.

The dates are those of the reference's history: log-scale sizes and the space before words came with the revision of
2025-03-27, the starmie tokenizer, reasoning and spatial references with that of 2025-06-21.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from edgevlm_runtime.manifest import PromptSpec, ReasoningSpec, SamplingSpec, Template


@dataclass(frozen=True, kw_only=True)
class Templates:
    """Token ids around the words of each task; None where the model has no such task. Names are config.json's."""

    caption: dict[str, tuple[int, ...]]
    query: Template
    detect: Template | None
    point: Template | None


@dataclass(frozen=True, kw_only=True)
class Era:
    """One generation: tokenizer, prompts, scale of sizes, sampling. Names of ids are config.json's.

    `until` is the last revision's date, or empty for the current era.
    """

    id_names: ClassVar[tuple[str, ...]] = (
        "bos_id",
        "eos_id",
        "answer_id",
        "thinking_id",
        "coord_id",
        "size_id",
        "start_ground_points_id",
        "end_ground_id",
    )

    name: str
    until: str
    size_scale: Literal["log", "linear"]
    question_prefix: str
    object_prefix: str
    sampling: SamplingSpec
    bos_id: int
    eos_id: int
    templates: Templates
    reasoning: bool = False
    answer_id: int = 3
    thinking_id: int = 4
    coord_id: int = 5
    size_id: int = 6
    start_ground_points_id: int = 7
    end_ground_id: int = 9

    def prompt(self) -> PromptSpec:
        """The manifest's prompts."""
        templates = self.templates
        query = templates.query
        if self.reasoning:
            # The reference appends the suffix twice when it does not reason, and the model was released that way.
            query = Template(prefix=query.prefix, suffix=2 * query.suffix)
        return PromptSpec(
            bos_id=self.bos_id,
            eos_id=self.eos_id,
            captions=templates.caption,
            query=query,
            detect=templates.detect,
            point=templates.point,
            reasoning=self._reasoning() if self.reasoning else None,
            suppressed_ids=(self.answer_id,) if self.reasoning else (),
            object_prefix=self.object_prefix,
            question_prefix=self.question_prefix,
            spatial_point=(self.coord_id,) * 2 if self.reasoning else (),
            spatial_box=(self.coord_id, self.coord_id, self.size_id) if self.reasoning else (),
        )

    def token_ids(self) -> set[int]:
        """Every id that a prompt of this generation uses."""
        templates = self.templates
        words = [template for template in (templates.query, templates.detect, templates.point) if template is not None]
        ids = {self.bos_id, self.eos_id, *(i for caption in templates.caption.values() for i in caption)}
        ids.update(i for template in words for i in (*template.prefix, *template.suffix))
        return ids | ({getattr(self, name) for name in self.id_names} if self.reasoning else set())

    def _reasoning(self) -> ReasoningSpec:
        query = self.templates.query
        return ReasoningSpec(
            template=Template(prefix=query.prefix, suffix=(*query.suffix, self.thinking_id)),
            answer_prompt=query.suffix,
            answer_id=self.answer_id,
            coordinate_id=self.coord_id,
            ground_start_id=self.start_ground_points_id,
            ground_end_id=self.end_ground_id,
            suppressed_ids=(self.eos_id, self.size_id),
        )


_SAMPLED = SamplingSpec(max_tokens=768, temperature=0.5, top_p=0.3)
_GPT2_CAPTIONS: dict[str, tuple[int, ...]] = {
    "short": (198, 198, 16438, 8305, 25),
    "normal": (198, 198, 24334, 1159, 25),
}
_GPT2_TEMPLATES = Templates(
    caption=_GPT2_CAPTIONS,
    query=Template(prefix=(198, 198, 24361, 25), suffix=(198, 198, 33706, 25)),
    detect=Template(prefix=(198, 198, 47504, 25), suffix=(628,)),
    point=Template(prefix=(198, 198, 12727, 25), suffix=(628,)),
)

GPT2_LINEAR = Era(
    name="gpt2-linear",
    until="2025-03-26",
    size_scale="linear",
    question_prefix="",
    object_prefix="",
    sampling=SamplingSpec(max_tokens=512, temperature=0.0, top_p=1.0),
    bos_id=50256,
    eos_id=50256,
    templates=_GPT2_TEMPLATES,
)
GPT2_LOG = Era(
    name="gpt2-log",
    until="2025-05-30",
    size_scale="log",
    question_prefix=" ",
    object_prefix=" ",
    sampling=_SAMPLED,
    bos_id=50256,
    eos_id=50256,
    templates=Templates(
        caption=_GPT2_CAPTIONS | {"long": (198, 198, 14617, 8305, 25)},
        query=_GPT2_TEMPLATES.query,
        detect=_GPT2_TEMPLATES.detect,
        point=_GPT2_TEMPLATES.point,
    ),
)
STARMIE = Era(
    name="starmie",
    until="",
    size_scale="log",
    question_prefix="",
    object_prefix=" ",
    sampling=_SAMPLED,
    bos_id=0,
    eos_id=0,
    templates=Templates(
        caption={"short": (1, 32708, 2, 12492, 3), "normal": (1, 32708, 2, 6382, 3), "long": (1, 32708, 2, 4059, 3)},
        query=Template(prefix=(1, 15381, 2), suffix=(3,)),
        detect=Template(prefix=(1, 7235, 476, 2), suffix=(3,)),
        point=Template(prefix=(1, 2581, 2), suffix=(3,)),
    ),
    reasoning=True,
)
