"""Your own images: any tree of PNG, JPEG, WebP, TIFF, BMP or GIF files, at 64x64.

  python -m diffusion_jax.main --config=configs/image_folder.py --config.data.source_dir=FOLDER

Data: every image below --config.data.source_dir, center-cropped and resized to data.image_size and
  mirrored at random; one in twenty is held out. --config.model.num_classes=auto conditions on
  the sub-folders, which are the classes.
Parameters: 35,746,307 for color images.
Steps: 200,000 of batch 64.
Expected: depends on the images; some thousands of them are needed for samples that are not copies.
Source: the CIFAR-10 network of Ho et al. (2020); the cost per image grows with the pixels, fourfold.
Device-hours: not measured; about the paper's 85 TPU v3 core-hours for CIFAR-10 divided by two
  (half as many images, each four times as many pixels, a quarter of the steps).
"""

from ml_collections import ConfigDict

from diffusion_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.data.name = "image_folder"
    config.data.image_size = 64
    config.data.test_fraction = 0.05
    config.data.random_flip = True

    config.model.channels = 128
    config.model.channel_mult = (1, 2, 2, 2)
    config.model.num_res_blocks = 2
    config.model.attention_resolutions = (16,)
    config.model.dropout = 0.1

    config.process.schedule = "cosine"

    config.train.num_steps = 200_000
    config.train.batch_size = 64
    config.train.checkpoint_every = 2000
    config.train.sample_every = 20_000
    return config
