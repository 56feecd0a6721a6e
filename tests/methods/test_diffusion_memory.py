"""What a job on a pipeline holds at most, as its estimate says."""

from interlace.methods.base import ModelFacts
from interlace.methods.shared.denoising.denoiser_cost import bytes_forward, peak


def test_the_autoencoder_counts_where_it_takes_more_than_the_denoiser() -> None:
    """Stable Diffusion 1.5 at 512 pixels in 16 bits: 12 numbers of each of 128 channels and pixels, a picture."""
    facts = ModelFacts(
        1_000_000_000, 4, 1280, 49408, weight_bytes=2, latents=(4, 64, 64), widths=(320, 640, 1280, 1280)
    )
    picture, denoiser = 12 * 128 * 512**2 * 2, bytes_forward(facts, 2)
    assert denoiser < picture
    assert peak(facts, denoiser, 1) == picture + (48 << 20)
    assert peak(facts, denoiser, 3, (256, 256)) == 3 * picture // 4 + (48 << 20)
    assert peak(facts, 2 * picture, 1) == 2 * picture + (48 << 20)
