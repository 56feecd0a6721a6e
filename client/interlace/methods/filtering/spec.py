"""`images.filter`: what captions and pictures say that a data set should not have is taken out, with the reason."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from interlace.methods.base import ArtifactName, Citation, Estimate, ModelFacts, Params, Result, Spec
from interlace.methods.filtering.published import CONCEPTS, PHRASES
from interlace.methods.shared.denoising.denoiser_cost import bytes_forward, images_in, peak, positions, size_in
from interlace.methods.shared.pictures import Picture
from interlace.protocol.ids import TEMPLATE

_Phrase = Annotated[str, Field(min_length=1, max_length=200)]
_IMAGES = 1000  # of an artifact whose size the estimate does not know


class TextCriteria(Params):
    """Words of a caption. What stands beside them (commas, full stops, quotes, hyphens) makes no difference."""

    phrases: Annotated[tuple[_Phrase, ...], Field(min_length=1, max_length=10_000)] = PHRASES
    """Whole words, one after the other, in any case. Published: 37, with plurals; whole words between spaces only, so
    that `painting,` stayed in."""
    plurals: bool = True
    """Whether `s` or `es` behind a phrase's last word is the same word."""


class Clip(Params):
    """The hosted model is a CLIP: the score is 100 times the cosine of image and concept."""

    scorer: Literal["clip"] = "clip"
    template: Annotated[str, Field(min_length=2, max_length=200, pattern=TEMPLATE)] = "{}"
    """What is read of a concept. Published: its name alone."""


class Denoiser(Params):
    """The hosted model is a diffusion pipeline: the score is by how much (in per cent) the concept as a prompt makes
    its error smaller on the image, against no prompt: Li et al., 2023 (arXiv:2303.16203), as a ratio."""

    scorer: Literal["denoiser"] = "denoiser"
    template: Annotated[str, Field(min_length=2, max_length=200, pattern=TEMPLATE)] = "{}"
    levels: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(min_length=1, max_length=100)] = (
        0.3,
        0.5,
        0.7,
    )
    """Noise levels, as shares of the timesteps."""
    draws: Annotated[int, Field(ge=1, le=100)] = 2
    """Of noise at each level; the same for every concept and image."""


class Probe(Params):
    """A small classifier, as an artifact: the score is its probability of the class that a concept names."""

    scorer: Literal["probe"] = "probe"
    probe: ArtifactName
    """Of kind `probe`, an `image_classifier` (see the page)."""


class Concept(Params):
    """What a picture must not show, and from which score on it does."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    threshold: Annotated[float, Field(ge=-1000, le=1000)]


class ImageCriteria(Params):
    """Concepts, and what scores them. A score at the threshold or over it removes the image."""

    by: Annotated[Clip | Denoiser | Probe, Field(discriminator="scorer")]
    concepts: Annotated[tuple[Concept, ...], Field(max_length=1000)] = ()
    """None: the 30 published ones, whose thresholds are for CLIP ViT-L/14 alone."""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if not self.concepts and not isinstance(self.by, Clip):
            raise ValueError("concepts is empty; the published thresholds are CLIP's, give some for this scorer")
        return self

    @property
    def wanted(self) -> tuple[Concept, ...]:
        return self.concepts or tuple(Concept(name=name, threshold=one) for name, one in CONCEPTS.items())


class FilterParams(Params):
    """First captions, then what is left by pictures, as published."""

    images: ArtifactName
    """Of kind `images`."""
    text: TextCriteria | None = TextCriteria()
    """None: captions are not looked at."""
    image: ImageCriteria | None = None
    """None: pictures are not looked at."""
    without_caption: Literal["keep", "remove"] = "remove"
    """What becomes of an image without a caption where captions are looked at. Published: removed."""
    batch: Annotated[int, Field(ge=1, le=1024)] = 16
    shown: Annotated[int, Field(ge=0, le=64)] = 12
    """How many of the removed, and of the kept that came closest, are drawn."""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.text is None and self.image is None:
            raise ValueError("text and image are both null; give at least one of them")
        return self


class FilterResult(Result):
    """Table `removed` (image, sha256, caption, stage, reason, score, threshold): a row for each image that went, with
    its first reason. `reasons` (stage, reason, images, alone): how many images each reason meets, and how many of them
    no other does. `closest` (image, caption, reason, score, threshold): kept ones that came nearest to a threshold. One
    artifact of kind `images`: what is left, none if nothing is."""

    kept: int
    """Images that are left."""
    removed: int
    """Images that were taken out."""
    pictures: tuple[Picture, ...] = ()
    """Some of each, as PNG."""


def estimate(params: FilterParams, facts: ModelFacts) -> Estimate:
    """Of as many images as the artifact has; a thousand where it is not known."""
    images = images_in(facts, params.images, _IMAGES)
    if params.image is None or isinstance(params.image.by, Probe):
        return Estimate(forwards=0, tokens=0, peak_bytes=1 << 28)
    batches, concepts = -(-images // params.batch), len(params.image.wanted)
    if isinstance(params.image.by, Denoiser):
        passes = len(params.image.by.levels) * params.image.by.draws * (concepts + 1)
        size = size_in(facts, params.images)
        return Estimate(
            forwards=batches * passes,
            tokens=images * passes * positions(facts, size),
            peak_bytes=peak(facts, bytes_forward(facts, params.batch, size), min(images, params.batch), size),
        )
    return Estimate(
        forwards=batches + 1,
        tokens=images * 256 + concepts * 8,
        peak_bytes=params.batch * 256 * facts.hidden_size * 4 * 16 + (1 << 28),
    )


SPECS = (
    Spec(
        name="images.filter",
        version=1,
        title="Take images out of a data set by what captions and pictures say, with the reason for each.",
        cites=(
            Citation(
                title="Opt-In Art: Learning Art Styles Only from Few Examples",
                authors="Hui Ren, Joanna Materzynska, Rohit Gandikota, David Bau, Antonio Torralba",
                year=2024,
                where="arXiv:2412.00176",
            ),
        ),
        params=FilterParams,
        result=FilterResult,
        run="interlace.methods.filtering.run:run",
        estimate=estimate,
        takes={"images": ("images",), "image.by.probe": ("probe",)},
        makes=("images",),
        page="docs/methods/images.md",
        plot="interlace.methods.filtering.plot:plot",
        wrappers=("DiffusionModel", "TransformersModel"),
    ),
)
