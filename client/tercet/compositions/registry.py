"""The compositions by name: what each does, reads and needs from the server, and its plan."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from tercet.composition import check_text, needs_pseudo_token, read_template
from tercet.compositions import plans
from tercet.compositions.plans import Plan
from tercet.compositions.rewrite import read_prompt
from tercet.compositions.settings import DATASET_DEFAULTS, FIELDS, Settings, Value, parse_value
from tercet.errors import InputError, LineupError, TextError
from tercet.lineup import Lineup

__all__ = ["COMPOSITIONS", "Recipe", "check_needs", "make_settings", "read_settings", "recipe_of"]

CAPTIONS = ("template", "background", "captions", "seed")
INCREMENT = ("increment", "increment_negative", "increment_positive")
EXCLUDE = ("exclude_near_duplicates",)
REWRITE = ("llm_model", "llm_seconds", "prompt")


@dataclass(frozen=True)
class Recipe:
    """A way to compose a query.

    reads: the settings that it reads; others are refused.
    plan: `plan(modification, settings, limit)`: a generator of needs, see `plans`. `limit` is the text
        encoder's context length in tokens, start and end included.
    defaults: where they differ from those of `Settings`.
    check: raises TextError or InputError where settings do not fit together.
    """

    name: str
    summary: str
    reads: tuple[str, ...]
    plan: Callable[[str, Settings, int], Plan]
    roles: Callable[[Settings], frozenset[str]]
    check: Callable[[Settings], None]
    defaults: Mapping[str, Value] = field(default_factory=dict)


def recipe_of(composition: str) -> Recipe:
    """The composition of that name.

    Raises:
        InputError: there is none.
    """
    if composition not in COMPOSITIONS:
        raise InputError(f"there is no composition {composition!r}; there are {', '.join(COMPOSITIONS)}")
    return COMPOSITIONS[composition]


def make_settings(
    composition: str, overrides: Mapping[str, Value] | None = None, dataset: str | None = None
) -> Settings:
    """The settings of a request: Tercet's defaults, then the data set's, then `overrides`.

    Texts are read as the kind that the setting has, as the command line gives them. An override of a factor
    of the increment switches the increment on, unless `increment` is given, too.

    Raises:
        InputError: no such composition; a setting that it does not read, or out of its range.
        TextError: a template that cannot be read or does not fit the composition.
    """
    recipe = recipe_of(composition)
    chosen: dict[str, Value] = dict(recipe.defaults)
    chosen |= DATASET_DEFAULTS.get(dataset or "", {}).get(composition, {})
    for name, value in (overrides or {}).items():
        if name not in recipe.reads:
            known = "" if name in FIELDS else ", and no composition does"
            raise InputError(
                f"composition {composition!r} does not read {name!r}{known}; "
                f"it reads {', '.join(recipe.reads)}"
            )
        chosen[name] = parse_value(name, value)
    if any(name in (overrides or {}) for name in INCREMENT):
        chosen.setdefault("increment", True)
    if "llm_model" in recipe.reads and not chosen.get("llm_model"):
        # Here, not when asked: a report tells the settings, and a cache goes by them.
        chosen["llm_model"] = os.environ.get("TERCET_LLM_MODEL", "")
    settings = Settings(**chosen)  # type: ignore[arg-type]
    recipe.check(settings)
    return settings


def check_needs(recipe: Recipe, settings: Settings, lineup: Lineup) -> None:
    """Refuse a composition whose roles the server lacks.

    Raises:
        LineupError: it names the roles and what to do.
    """
    missing = sorted(recipe.roles(settings) - set(lineup.roles))
    if missing:
        only_remover = missing == ["background_remover"]
        cure = "set background to keep" if only_remover else "serve a lineup that has, or compose otherwise"
        raise LineupError(
            f"composition {recipe.name!r} needs {' and '.join(missing)}, which lineup {lineup.name!r} "
            f"lacks: {cure}"
        )


def read_settings(recipe: Recipe, settings: Settings) -> dict[str, Value]:
    """The settings that the composition reads, by name: what a report says."""
    given = dataclasses.asdict(settings)
    return {name: given[name] for name in recipe.reads}


def _roles_of_template(template: str, settings: Settings) -> set[str]:
    roles = {"clip_text"}
    if "{caption}" in read_template(template):
        roles |= _roles_of_captions(settings)
    if needs_pseudo_token(template):
        roles |= {"clip_image", "image_to_token"}
    return roles


def _roles_of_captions(settings: Settings) -> set[str]:
    return {"captioner"} if settings.background == "keep" else {"captioner", "background_remover"}


def _with_exclusion(roles: set[str], settings: Settings) -> frozenset[str]:
    return frozenset(roles | ({"clip_image"} if settings.exclude_near_duplicates is not None else set()))


def _roles_fused(settings: Settings) -> frozenset[str]:
    return _with_exclusion(_roles_of_template(settings.template, settings), settings)


def _roles_rewritten(settings: Settings) -> frozenset[str]:
    return _with_exclusion({"clip_text"} | _roles_of_captions(settings), settings)


def _roles_image(settings: Settings) -> frozenset[str]:
    return frozenset({"clip_image"})


def _roles_mixed(settings: Settings) -> frozenset[str]:
    return frozenset({"clip_image", "clip_text"})


def _roles_blend(settings: Settings) -> frozenset[str]:
    roles: set[str] = set()
    if settings.caption_weight:
        roles |= _roles_of_template(settings.template, settings)
    if settings.pic2word_weight:
        roles |= _roles_of_template(settings.pic2word_template, settings)
    if settings.text_weight:
        roles |= {"clip_text"}
    if settings.image_weight:
        roles |= {"clip_image"}
    return _with_exclusion(roles, settings)


def _check_template(template: str, *, caption: bool | None, pseudo_word: bool | None, whose: str) -> None:
    """`caption`, `pseudo_word`: whether the template must (True) or must not (False) hold it."""
    for wanted, there, mark in (
        (caption, "{caption}" in read_template(template), "{caption}"),
        (pseudo_word, needs_pseudo_token(template), "* as a word of its own"),
    ):
        if wanted is not None and wanted != there:
            must = "must hold" if wanted else "must not hold"
            raise TextError(f"template {template!r} {must} {mark} in composition {whose!r}")


def _check_fused(settings: Settings) -> None:
    if settings.increment:
        _check_template(settings.template, caption=True, pseudo_word=None, whose="caption with the increment")


def _check_rewritten(settings: Settings) -> None:
    _check_template(settings.template, caption=True, pseudo_word=False, whose="rewrite")
    read_prompt(settings.prompt)
    if not settings.llm_model:
        raise InputError(
            "rewrite needs a language model: set llm_model, or TERCET_LLM_MODEL in the environment"
        )
    check_text(settings.llm_model, "llm_model")


def _check_both(settings: Settings) -> None:
    _check_template(settings.template, caption=True, pseudo_word=True, whose="caption+pic2word")


def _check_pic2word(settings: Settings) -> None:
    _check_template(settings.template, caption=False, pseudo_word=True, whose="pic2word")


def _check_text(settings: Settings) -> None:
    _check_template(settings.template, caption=False, pseudo_word=False, whose="text, sum, slerp or product")


def _check_blend(settings: Settings) -> None:
    _check_template(settings.template, caption=True, pseudo_word=None, whose="blend")
    _check_template(settings.pic2word_template, caption=False, pseudo_word=True, whose="blend")
    if not any(getattr(settings, name) for name in BLEND_WEIGHTS):
        raise InputError(f"all weights of the blend are 0; set one of {', '.join(BLEND_WEIGHTS)}")


def _check_nothing(settings: Settings) -> None:
    pass


BLEND_WEIGHTS = ("caption_weight", "pic2word_weight", "text_weight", "image_weight")
TEXT_ALONE: Mapping[str, Value] = MappingProxyType({"template": "modification"})

COMPOSITIONS: Mapping[str, Recipe] = MappingProxyType(
    {
        recipe.name: recipe
        for recipe in (
            Recipe(
                "text",
                "the modification alone",
                ("template", *EXCLUDE),
                plans.plan_fused,
                _roles_fused,
                _check_text,
                TEXT_ALONE,
            ),
            Recipe("image", "the reference alone", EXCLUDE, plans.plan_image, _roles_image, _check_nothing),
            Recipe(
                "sum",
                "weighted sum of modification and reference",
                ("template", "text_weight", *EXCLUDE),
                plans.plan_sum,
                _roles_mixed,
                _check_text,
                TEXT_ALONE,
            ),
            Recipe(
                "slerp",
                "a point on the arc from reference to modification",
                ("template", "slerp_alpha", *EXCLUDE),
                plans.plan_slerp,
                _roles_mixed,
                _check_text,
                TEXT_ALONE,
            ),
            Recipe(
                "product",
                "similarity to the modification times similarity to the reference",
                ("template", "text_floor", "image_floor", *EXCLUDE),
                plans.plan_product,
                _roles_mixed,
                _check_text,
                TEXT_ALONE,
            ),
            Recipe(
                "pic2word",
                "the reference as one pseudo-word in a prompt",
                ("template", "modification_share", *EXCLUDE),
                plans.plan_fused,
                _roles_fused,
                _check_pic2word,
                {"template": "pic2word"},
            ),
            Recipe(
                "caption",
                "the reference's caption fused with the modification: the method",
                (*CAPTIONS, "modification_share", *INCREMENT, *EXCLUDE),
                plans.plan_fused,
                _roles_fused,
                _check_fused,
            ),
            Recipe(
                "caption+pic2word",
                "caption and pseudo-word in one prompt",
                (*CAPTIONS, "modification_share", *INCREMENT, *EXCLUDE),
                plans.plan_fused,
                _roles_fused,
                _check_both,
                {"template": "caption-pic2word"},
            ),
            Recipe(
                "blend",
                "weighted similarities to fused caption, Pic2Word's prompt, modification and reference",
                (*CAPTIONS, "pic2word_template", *BLEND_WEIGHTS, *EXCLUDE),
                plans.plan_blend,
                _roles_blend,
                _check_blend,
                {"text_weight": 0.2},
            ),
            Recipe(
                "rewrite",
                "the caption rewritten by a language model as the modification says",
                (*CAPTIONS, *REWRITE, "modification_share", *INCREMENT, *EXCLUDE),
                plans.plan_rewritten,
                _roles_rewritten,
                _check_rewritten,
            ),
        )
    }
)
"""Every composition by name."""
