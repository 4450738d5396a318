"""Images of letters and symbols, without digits: the pretraining data of the built-in glyph models.

The fonts are the TrueType files that ship inside the matplotlib package; the package itself is not imported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fedquilt.core.errors import DataError
from fedquilt.core.rng import Rng
from fedquilt.core.shell import pip_install
from fedquilt.data.table import Table

# One word is one class, named by its first character. Every glyph is scaled to one box, so characters that differ in
# little but size (c and C, theta and its capital) are indistinguishable and form one class.
_LATIN = "A B Cc D E F G H Il| J K L M N Oo P Q R Ss T Uu Vv Ww Xx Y Zz a b d e f g h i j k m n p q r t y"
_GREEK = "Γ Δ Θθ Λ Ξ Π Σ Φφ Ψψ Ω α β γ δ ε ζ η λ μ ξ π σ τ ω ς"  # noqa: RUF001
# Capitals only: italic small Cyrillic letters borrow Latin shapes. Ze, che and small be are left out because they are
# drawn like the digits 3, 4 and 6.
_CYRILLIC = "Б Д Ж И Й Л Ц Ш Щ Ъ Ы Э Ю Я"
_SYMBOLS = (
    "@ & # $ % ? ! + = < > * / \\ ( ) [ ] { } ~ ^ § ¶ € £ ¥ © ® ∞ ∫ √ ∂ ∇ ∈ ∀ ∃ ← → ↑ ↓ ↔ ± ÷ ≠ ≤ ≥ ≈ ⊕ ⊗ † ‡ ¬ ∝ ♪ ℵ ℏ"
)
CLASSES: tuple[str, ...] = tuple(f"{_LATIN} {_GREEK} {_CYRILLIC} {_SYMBOLS}".split())

# The Computer Modern files store other glyphs (also digits) under the codes of symbols; only their letters are usable.
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_CAPITALS = _LETTERS[:26]
_ALL = "".join(CLASSES)
_FONTS: dict[str, str] = {
    **{f"DejaVuSans{style}": _ALL for style in ("", "-Bold", "-Oblique", "-BoldOblique")},
    **{f"DejaVuSansMono{style}": _ALL for style in ("", "-Bold", "-Oblique", "-BoldOblique")},
    **{f"DejaVuSerif{style}": _ALL for style in ("", "-Bold", "-Italic", "-BoldItalic")},
    **{f"STIXGeneral{style}": _ALL for style in ("", "Bol", "Italic", "BolIta")},
    **dict.fromkeys(("cmr10", "cmb10", "cmss10", "cmtt10", "cmti10", "cmmi10"), _LETTERS),
    "cmsy10": _CAPITALS,
}
FONTS: tuple[str, ...] = tuple(_FONTS)

SIDE = 28  # pixels of a finished image
_CANVAS = 2 * SIDE  # glyphs are distorted at twice the resolution, then averaged down
_BOX = 40  # the longer side of a glyph on the canvas: 20 of 28 pixels, as in MNIST


@dataclass(frozen=True)
class Pool:
    """Undistorted glyphs: ``images`` uint8 (n, 56, 56), white on black; ``labels`` int64 (n,) into ``CLASSES``."""

    images: Tensor
    labels: Tensor


def font_folder() -> Path:
    """The folder of TrueType files inside the installed matplotlib package.

    Raises
    ------
    DataError
        if matplotlib, or the folder inside it, is not installed.
    """
    spec = find_spec("matplotlib")  # finds a package without importing it
    for location in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(location) / "mpl-data" / "fonts" / "ttf"
        if folder.is_dir():
            return folder
    raise DataError(
        "no fonts found: glyphs are drawn from the fonts inside matplotlib; install it with: "
        f"{pip_install('matplotlib')}"
    )


@cache
def glyph_pool(fonts: tuple[str, ...] = FONTS) -> Pool:
    """The undistorted glyphs of every character, one for each of ``fonts`` that has the character.

    Raises
    ------
    DataError
        if a name is not one of ``FONTS``, its file is missing, or no font is named.
    """
    images, labels = [], []
    for name in fonts:
        if name not in _FONTS:
            raise DataError(f"font '{name}' is not known; allowed: {', '.join(FONTS)}")
        path = font_folder() / f"{name}.ttf"
        if not path.is_file():
            raise DataError(f"font file {path} is missing; reinstall matplotlib, or leave the font '{name}' out")
        font = ImageFont.truetype(str(path), 96)
        empty = _drawn(font, "\uffff")  # no font has this character, so this is the box for missing glyphs
        for label, characters in enumerate(CLASSES):
            for character in characters:
                image = _drawn(font, character) if character in _FONTS[name] else None
                if image is not None and (empty is None or not np.array_equal(image, empty)):
                    images.append(torch.from_numpy(image))
                    labels.append(label)
    if not images:
        raise DataError(f"no font is named; allowed: {', '.join(FONTS)}")
    return Pool(torch.stack(images), torch.tensor(labels))


def _drawn(font: ImageFont.FreeTypeFont, character: str) -> np.ndarray | None:
    """The glyph scaled to the box and centred on the canvas; None if the font draws nothing."""
    left, top, right, bottom = (int(edge) for edge in font.getbbox(character))
    width, height = right - left, bottom - top
    if width <= 0 or height <= 0:
        return None
    glyph = Image.new("L", (width, height))
    ImageDraw.Draw(glyph).text((-left, -top), character, fill=255, font=font)
    scale = _BOX / max(width, height)
    glyph = glyph.resize((max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BOX)
    canvas = Image.new("L", (_CANVAS, _CANVAS))
    canvas.paste(glyph, ((_CANVAS - glyph.width) // 2, (_CANVAS - glyph.height) // 2))
    return np.array(canvas)


def distorted(glyphs: Tensor, generator: torch.Generator) -> Tensor:
    """Random distortions of ``glyphs``, uint8 (n, 56, 56): float (n, 28, 28) in [0, 1].

    Stroke thickness; rotation, scale, shear, shift and a smooth warp; for 40 % of the images a reduction to 6 to 14
    pixels and back; blur; contrast; noise. Each image has parameters of its own from ``generator``, a CPU generator.
    """
    count, device = len(glyphs), glyphs.device

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return (low + (high - low) * torch.rand(count, *shape, generator=generator)).to(device)

    images = glyphs[:, None].float() / 255  # (n, 1, 56, 56)
    images = _thickened(images, uniform(-0.7, 2.0, 1, 1, 1))
    images = F.grid_sample(images, _grid(uniform, count), align_corners=False)
    images = F.avg_pool2d(images, 2)  # (n, 1, 28, 28)
    sides = torch.randint(6, 15, (count,), generator=generator)
    sides[torch.rand(count, generator=generator) < 0.6] = SIDE
    for side in range(6, 15):
        chosen = (sides == side).nonzero().flatten().to(device)
        if len(chosen):
            coarse = F.adaptive_avg_pool2d(images[chosen], side)
            images[chosen] = F.interpolate(coarse, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    images = torch.lerp(images, F.avg_pool2d(images, 3, 1, 1), uniform(0, 1, 1, 1, 1) ** 2)
    images = images.clamp(1e-6, 1) ** uniform(0.4, 1.3, 1, 1, 1) * uniform(0.7, 1.3, 1, 1, 1)
    noise = torch.randn(images.shape, generator=generator).to(device)
    return (images + noise * uniform(0, 0.06, 1, 1, 1)).clamp(0, 1)[:, 0]


def _thickened(images: Tensor, amount: Tensor) -> Tensor:
    """Strokes wider by about ``amount`` canvas pixels on each side; thinner where it is negative."""
    images = images.clone()
    for sign, above in ((-1, 0), (1, 0), (1, 1)):  # thinner by up to 1 pixel; wider by up to 1; and by a second one
        rows = (sign * amount.flatten() > above).nonzero().flatten()
        some = images[rows]
        weight = (sign * amount[rows] - above).clamp(max=1)
        images[rows] = torch.lerp(some, sign * F.max_pool2d(sign * some, 3, 1, 1), weight)
    return images


def _grid(uniform: Callable[..., Tensor], count: int) -> Tensor:
    """Sampling positions (n, 56, 56, 2) of a random affine map with a smooth random warp on top."""
    angle, shear = uniform(-0.35, 0.35), uniform(-0.35, 0.35)
    wide, high = 1 / uniform(0.65, 1.3), 1 / uniform(0.75, 1.4)  # the map goes from output to input: inverse scales
    cos, sin = angle.cos(), angle.sin()
    shift = uniform(-0.15, 0.15, 2)
    rows = [
        torch.stack((cos * wide, (shear * cos - sin) * wide, shift[:, 0]), 1),
        torch.stack((sin * high, (shear * sin + cos) * high, shift[:, 1]), 1),
    ]
    grid = F.affine_grid(torch.stack(rows, 1), [count, 1, _CANVAS, _CANVAS], align_corners=False)
    bends = uniform(-1, 1, 2, 5, 5) * uniform(0, 0.18, 1, 1, 1)
    warp = F.interpolate(bends, size=(_CANVAS, _CANVAS), mode="bicubic", align_corners=True)
    return grid + warp.permute(0, 2, 3, 1)


def draw(pool: Pool, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw ``size`` distorted images, float (size, 28, 28) in [0, 1], and labels; uniform over classes, then fonts."""
    share = 1.0 / torch.bincount(pool.labels, minlength=len(CLASSES)).clamp(min=1)
    chosen = torch.multinomial(share[pool.labels], size, replacement=True, generator=generator)
    return distorted(pool.images[chosen], generator), pool.labels[chosen]


def glyph_table(size: int, rng: Rng, *, fonts: Sequence[str] = FONTS) -> Table:
    """``size`` labelled drawings, uint8 (size, 28, 28), drawn with ``rng``.

    Raises
    ------
    DataError
        if ``size`` is below 1, or a font is not one of ``FONTS``.
    """
    if size < 1:
        raise DataError(f"size is {size}: a table of glyphs needs at least 1 row")
    images, labels = draw(glyph_pool(tuple(fonts)), size, rng.torch())
    return Table("image", (images * 255).round().to(torch.uint8), labels, CLASSES)
