"""What the world is made of, as data: every value of every aspect of a scene, and the words for it."""

# Base colours in sRGB. No white and no grey: a cut-out lies on white, and shadows are grey.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (244, 132, 24),
    "yellow": (246, 214, 44),
    "green": (46, 158, 62),
    "turquoise": (44, 196, 190),
    "blue": (42, 88, 214),
    "purple": (134, 62, 188),
    "pink": (246, 128, 184),
    "brown": (126, 78, 40),
    "black": (36, 36, 40),
}

SHAPES = ("star", "heart", "ring", "moon", "flower", "fish", "house", "mushroom", "cup", "kite")

# Adjective and noun of each pattern. A plain thing is one whose pattern is not spoken of.
PATTERNS: dict[str, tuple[str, str] | None] = {
    "plain": None,
    "striped": ("striped", "stripes"),
    "spotted": ("spotted", "spots"),
    "checkered": ("checkered", "checks"),
}

# Half the extent of the thing as a share of the frame, and the words for it. A medium size is not spoken of.
SIZES: dict[str, tuple[float, tuple[str, ...]]] = {
    "small": (0.165, ("small", "little")),
    "medium": (0.26, ()),
    "large": (0.37, ("large", "big")),
}

# The phrases for each background; the first is the usual one.
BACKGROUNDS: dict[str, tuple[str, ...]] = {
    "beach": ("on a beach", "at the beach"),
    "forest": ("in a forest", "in the woods"),
    "city": ("in a city at night", "in the city"),
    "snow": ("in the snow", "in a snowy landscape"),
    "bricks": ("in front of a brick wall", "before a brick wall"),
    "meadow": ("in a meadow", "in the grass"),
    "desert": ("in the desert", "in a desert"),
    "water": ("under water", "under the sea"),
    "tiles": ("on kitchen tiles", "in front of kitchen tiles"),
    "space": ("in space", "in outer space"),
}

# The noun of each style with its article; a photo is rarely spoken of as one.
STYLES: dict[str, str] = {
    "photo": "a photo",
    "sketch": "a pencil sketch",
    "painting": "an oil painting",
    "comic": "a comic",
}
