"""When to remove the reference's background before it is captioned: the rule behind `background="auto"`.

Removal makes the caption speak of the subject alone, which is right unless the modification counts on what is
removed ("as a sketch, in the same place"), or the mask shows nothing, or everything.
"""

import re
from dataclasses import dataclass

from tercet.compositions.settings import BackgroundChoice
from tercet.messages import Background

__all__ = ["EMPTY", "FULL", "Choice", "choose_by_mask", "choose_by_text", "own_background"]

EMPTY, FULL = 0.01, 0.95
"""Shares of the picture under which a mask has found no subject, and over which it leaves nothing out."""

PLACES = (
    "background|backgrounds|backdrop|place|places|scene|scenery|setting|settings|location|locale|"
    "room|surroundings|surrounding|environment|view|landscape|spot|context|venue|site"
)
"""What an English sentence calls a picture's background; regular expressions, as all word lists here."""

SAME = "same|similar|identical|original|initial|current|existing|unchanged|unaltered|untouched"
KEEPING = (
    "keep|keeps|keeping|kept|retain|retains|retaining|retained|preserve|preserves|preserving|"
    "preserved|maintain|maintains|maintaining|maintained|leave|leaves|leaving"
)
UNCHANGED = (
    r"(?:the same|unchanged|unaltered|untouched|intact|identical|as (?:it )?(?:is|was)|as before|alike)"
)
BE = r"(?:is|are|was|stays?|remains?|staying|remaining|should (?:be|stay|remain)|must (?:be|stay|remain))"

# What "in the same ..." may name that is no place.
NOT_PLACES = (
    "pose|position|posture|way|manner|style|colour|color|colours|colors|size|shape|pattern|direction|"
    "angle|time|order|number|row|outfit|clothes|dress|shirt|material|fabric|breed|fashion|proportion|"
    "proportions|orientation|amount|quantity|kind|type|species|age|mood|expression"
)

# Listed, for "silver", "leather" and "flower" end like them.
COMPARED = (
    r"(?:more|less|fewer|too|as \w+ as|(?:bright|dark|light|pal|deep|rich|dull|warm|cold|cool|soft|sharp|"
    r"clean|clear|plain|simpl|full|smooth|rough|larg|small|bigg|wid|narrow|tall|high|low|near|clos|new|old|"
    r"green|redd|blu|whit|black|greyy?|neat|bold|blurri|busi|hazi|foggi|sunni|cloudi|snowi|empti|"
    r"messi|tidi|noisi)er|further|farther)"
)
NEGATED = re.compile(
    r"(?:\bnot|n't|\bno longer|\bnever|\brather than|\binstead of|\bwithout|\bother than)(?:\s+\w+){0,3}\s*$"
)

_PLACE = rf"(?:{PLACES})"
_WORDS = r"(?:[\w'-]+\s+)"
_REPLACED = re.compile(
    rf"\b(?:chang\w*|replac\w*|swap\w*|switch\w*|remov\w*|eras\w*|delet\w*|without|no|different|new|another|other|"
    rf"plain)\s+{_WORDS}{{0,2}}{_PLACE}\b"
)
_RULES = (
    # "the same place", "its original snowy background"
    re.compile(rf"\b(?:{SAME})\s+{_WORDS}{{0,2}}?{_PLACE}\b"),
    # "keep the background", "leaving everything else in the scene"
    re.compile(rf"\b(?:{KEEPING})\s+{_WORDS}{{0,4}}?{_PLACE}\b"),
    # "the background stays the same", "background unchanged"
    re.compile(rf"\b{_PLACE}\s+(?:{BE}\s+)?(?:\w+ly\s+)?{UNCHANGED}\b"),
    # "on the same beach", "in that same kitchen"
    re.compile(
        r"\b(?:in|on|at|inside|outside|near|by|under|behind|before|beside|against|within|along|from)\s+"
        rf"(?:exactly\s+|still\s+)?(?:(?:the|that|this|its|their)\s+)?(?:very\s+)?same\s+(?!(?:{NOT_PLACES})\b)\w+"
    ),
    # "still on the beach", "still in front of the wall"
    re.compile(r"\bstill\s+(?:in|on|at|inside|outside|by|near|against|under|there)\b"),
    # "don't change the background", "without altering the scene"
    re.compile(
        rf"(?:\bnot|n't|\bnever|\bwithout)\s+(?:chang|remov|replac|swap|switch|alter|touch|modify|edit|lose|losing)"
        rf"\w*\s+{_WORDS}{{0,2}}{_PLACE}\b"
    ),
    # "remove the car in the background", "no people in the background"
    re.compile(
        rf"\b(?:remov\w*|without|no|fewer|less)\s+{_WORDS}{{1,4}}(?:in|from)\s+(?:the|its|their)\s+{_PLACE}\b"
    ),
    # "a darker background", "a less cluttered scene"
    re.compile(rf"\b{COMPARED}\s+{_WORDS}?(?:background|backdrop|scenery|surroundings)\b"),
    # "where it is"
    re.compile(r"\bwhere\s+(?:it|he|she|they)(?:'s|'re|\s+(?:is|are|was|were|stands?|sits?|lies?))\b"),
)
# "the background is darker", "with fewer trees in the background": compared with what is there.
_DEFINITE = re.compile(
    rf"\b(?:the|its|their|his|her)\s+{_WORDS}?(?:background|backdrop|scenery|surroundings)\b"
)
_COMPARISON = re.compile(rf"\b{COMPARED}\b")
# "the background is a beach", "the background should be white", "in the background": named anew.
_NAMED_ANEW = re.compile(
    r"\b(?:background|backdrop|scenery|surroundings)\s+(?:(?:should|must|could|can|to|now)\s+)*"
    r"(?:is|are|be|becomes?|turns?|shows?|has|have|to|with|of|instead)\b"
    r"|\b(?:in|into|to|on|as)\s+(?:the|its|their)\s+(?:background|backdrop)\b"
)


@dataclass(frozen=True)
class Choice:
    """What to do with the background, and why."""

    background: Background
    reason: str


def choose_by_text(modification: str, asked: BackgroundChoice) -> Choice:
    """What the request asks for; with "auto", to keep what the modification counts on."""
    if asked != "auto":
        return Choice(asked, "as asked")
    found = own_background(modification)
    if found is not None:
        return Choice("keep", f'the modification speaks of the reference\'s own background: "{found}"')
    return Choice("remove", "the modification does not speak of the reference's own background")


def choose_by_mask(coverage: float | None) -> Choice | None:
    """A reason to keep the background that the mask gives, from its mean; None where it gives none."""
    if coverage is None or EMPTY <= coverage <= FULL:
        return None
    if coverage < EMPTY:
        return Choice("keep", f"the mask is empty: it leaves {coverage:.1%} of the picture")
    return Choice("keep", f"the mask is full: it leaves {coverage:.1%} of the picture")


def own_background(modification: str) -> str | None:
    """The words by which an English modification speaks of the reference's own background; None: it does not.

    Naming a new background ("on a beach", "change the background to snow") is not speaking of the old one.
    """
    text = " ".join(modification.casefold().replace("\u2019", "'").split())
    for rule in _RULES:
        for found in rule.finditer(text):
            if not NEGATED.search(text[: found.start()]):
                return found[0]
    for clause in re.split(r"[.;,:]|\bbut\b|\band\b|\bwhile\b", text):
        definite = _DEFINITE.search(clause)
        if definite and not _REPLACED.search(clause) and not NEGATED.search(clause[: definite.start()]):
            if _COMPARISON.search(clause):
                return clause.strip()
            if not _NAMED_ANEW.search(clause):
                return definite[0]
    return None
