"""Some hundreds or thousands of your own images on a laptop, at 32x32.

  python -m diffusion_jax.main --config=configs/image_folder_small.py --config.data.source_dir=FOLDER

Data: every image below --config.data.source_dir, center-cropped and resized to 32x32; one in ten is held out. If all
  lie in sub-folders, these are the classes. --config.data.random_flip=true also shows their mirror images, which suits
  most photographs, but no letters.
Parameters: 1,114,595 for color images of four classes.
Steps: 1,000 of batch 32 (89 epochs of 360 images).
Expected: of 400 pictures of clothes in four classes, samples that show what they are by step 400.
Source: measured by the command above on 400 tinted pictures of Fashion-MNIST; see docs/your_own_images.md.
Device-hours: 0.33 on CPU cores (ten minutes on two that other work shared, compilation and pictures included).
"""

from ml_collections import ConfigDict

from diffusion_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.data.name = "image_folder"
    config.data.image_size = 32
    config.data.test_fraction = 0.1

    config.model.channels = 32
    config.model.channel_mult = (1, 2, 2)
    config.model.num_res_blocks = 1
    config.model.attention_resolutions = (8,)
    config.model.num_classes = "auto"

    config.process.schedule = "cosine"
    config.process.prediction = "v"
    config.process.variance = "fixed_small"

    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.ema_decay = 0.995

    config.train.num_steps = 1000
    config.train.batch_size = 32
    config.train.label_dropout = 0.1
    config.train.log_every = 50
    config.train.checkpoint_every = 200
    config.train.sample_every = 200

    # In all modes, since a thousand steps of 64 images take minutes.
    config.sampler.name = "dpmpp_2m"
    config.sampler.num_steps = 20
    config.sampler.spacing = "trailing"
    return config
