"""From a scene to its picture and its mask, always the same for the same scene and size."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from tercet_training.world.backgrounds import PAINTERS
from tercet_training.world.scenes import Scene
from tercet_training.world.shapes import OUTLINES
from tercet_training.world.styles import FILTERS
from tercet_training.world.vocabulary import COLOURS, SIZES

SUPERSAMPLING = 2
COMPANION_EXTENT = 0.14


class Placement:
    """Where and how a thing stands: centre and half extent in 0..1 of the frame, rotation in radians."""

    def __init__(self, rng: np.random.Generator, x: float, y: float, extent: float) -> None:
        self.extent = extent * rng.uniform(0.94, 1.06)
        self.x, self.y = x + rng.uniform(-0.04, 0.04), y + rng.uniform(-0.04, 0.04)
        self.rotation = rng.uniform(-0.3, 0.3)
        self.mirrored = bool(rng.random() < 0.5)
        self.light = rng.uniform(0, 2 * np.pi)
        self.pattern_turn, self.pattern_shift = rng.uniform(0, np.pi), rng.uniform(0, 1, 2)


def place(scene: Scene, rng: np.random.Generator) -> tuple[Placement, Placement]:
    """Placements of the thing and of its companion, to either side of it."""
    extent = SIZES[scene.subject.thing.size][0]
    if scene.subject.companion is None:
        free = max(0.0, 0.46 - extent)
        x, y = 0.5 + free * rng.uniform(-1, 1), 0.5 + free * rng.uniform(-1, 1)
        return Placement(rng, x, y, extent), Placement(rng, 0.5, 0.5, COMPANION_EXTENT)
    side = 1 if rng.random() < 0.5 else -1
    main = Placement(rng, 0.5 - side * 0.13, 0.47, extent * 0.92)
    return main, Placement(rng, 0.5 + side * 0.33, rng.uniform(0.25, 0.8), COMPANION_EXTENT)


def silhouette(shape: str, placement: Placement, size: int) -> Image.Image:
    """The thing's own mask, mode L, at `size` pixels, without smoothing."""
    cos, sin = np.cos(placement.rotation), np.sin(placement.rotation)
    turn = np.array([[cos, sin], [-sin, cos]])
    mirror = np.array([-1.0 if placement.mirrored else 1.0, 1.0])
    image = Image.new("L", (size, size))
    draw = ImageDraw.Draw(image)
    for points, added in OUTLINES[shape]():
        placed = ((points * mirror) @ turn * placement.extent + (placement.x, placement.y)) * size
        draw.polygon([(float(x), float(y)) for x, y in placed], fill=255 if added else 0)
    return image


def pattern_field(pattern: str, u: NDArray[np.float32], v: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Where the pattern has its second colour; u, v count periods."""
    if pattern == "striped":
        return u % 1 < 0.5
    if pattern == "spotted":
        return (u % 1 - 0.5) ** 2 + (v % 1 - 0.5) ** 2 < 0.09
    if pattern == "checkered":
        return (u % 1 < 0.5) ^ (v % 1 < 0.5)
    return np.zeros(u.shape, bool)


def contour(inside: Image.Image, width: int) -> Image.Image:
    """The outermost `width` pixels of a mask."""
    values = np.asarray(inside)
    padded = np.pad(values, width)
    core = values.copy()
    for down, across in ((0, 1), (2, 1), (1, 0), (1, 2)):
        down, across = down * width, across * width
        np.minimum(core, padded[down : down + core.shape[0], across : across + core.shape[1]], out=core)
    return Image.fromarray(values - core)


def paint_thing(canvas: Image.Image, shape: str, colour: str, pattern: str, placement: Placement) -> None:
    """Paint the thing onto the canvas: shadow, pattern, light, contour."""
    size = canvas.width
    whole = silhouette(shape, placement, size)
    reach = placement.extent * 1.4
    box = (
        max(0, int((placement.x - reach) * size)),
        max(0, int((placement.y - reach) * size)),
        min(size, int((placement.x + reach) * size) + 1),
        min(size, int((placement.y + reach) * size) + 1),
    )
    inside = whole.crop(box)
    shadow = inside.filter(ImageFilter.GaussianBlur(size / 60)).point(lambda value: value * 0.5)
    canvas.paste((20, 20, 30), (box[0] + size // 60, box[1] + size // 40), shadow)

    columns = (np.arange(box[0], box[2], dtype=np.float32) + 0.5) / size - placement.x
    rows = (np.arange(box[1], box[3], dtype=np.float32) + 0.5) / size - placement.y
    x, y = np.meshgrid(columns, rows)
    # The period follows the thing, but never so fine that a picture of 64 pixels loses it.
    period = max(0.095, placement.extent * 0.42)
    cos, sin = np.cos(placement.pattern_turn), np.sin(placement.pattern_turn)
    u, v = (
        (cos * x + sin * y) / period + placement.pattern_shift[0],
        (cos * y - sin * x) / period + placement.pattern_shift[1],
    )
    base = np.array(COLOURS[colour], np.float32)
    pale = 0.25 * base + 187  # the pattern is a pale tint of the same colour
    light = 1 + 0.14 * (x * np.cos(placement.light) + y * np.sin(placement.light)) / placement.extent
    second = pattern_field(pattern, u, v)
    channels = [np.where(second, p, b) * light for p, b in zip(pale, base, strict=True)]
    paint = np.stack(channels, axis=2)
    canvas.paste(Image.fromarray(np.clip(paint, 0, 255, out=paint).astype(np.uint8)), box, inside)

    rim = contour(inside, size // 128)
    dark = tuple(int(value) for value in base * 0.35)
    canvas.paste(dark, box, rim)


def render(scene: Scene, size: int = 128) -> Image.Image:
    """The picture of a scene, RGB, `size` x `size` pixels."""
    placing, painting, styling = (np.random.default_rng([scene.seed, stage]) for stage in range(3))
    canvas = PAINTERS[scene.background](painting, size * SUPERSAMPLING)
    thing, companion = scene.subject.thing, scene.subject.companion
    main, beside = place(scene, placing)
    paint_thing(canvas, thing.shape, thing.colour, thing.pattern, main)
    if companion is not None:
        paint_thing(canvas, companion.shape, companion.colour, "plain", beside)
    return FILTERS[scene.style](styling, canvas.reduce(SUPERSAMPLING))


def mask(scene: Scene, size: int = 128) -> Image.Image:
    """The foreground of `render(scene, size)`: mode L, 255 on the things, smooth at their contours."""
    main, beside = place(scene, np.random.default_rng([scene.seed, 0]))
    whole = silhouette(scene.subject.thing.shape, main, size * SUPERSAMPLING)
    if scene.subject.companion is not None:
        other = silhouette(scene.subject.companion.shape, beside, size * SUPERSAMPLING)
        whole.paste(255, (0, 0), other)
    return whole.reduce(SUPERSAMPLING)
