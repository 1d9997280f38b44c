"""What several unit tests share: a picture, two results, and tiny networks of SAM and SAM 2."""

import numpy as np
import pytest
import torch

import ovss_bench as ob
from ovss_bench.runs.evaluate import make_job, run_jobs
from tiny_networks import SIDE


@pytest.fixture(scope="session")
def scene():
    """A picture of 40 x 56 pixels with a few clear shapes."""
    y, x = np.mgrid[:40, :56]
    image = np.full((40, 56, 3), (200, 180, 130), np.uint8)
    image[(y - 12) ** 2 + (x - 15) ** 2 < 81] = (40, 70, 190)
    image[20:35, 30:50] = (205, 45, 40)
    return image


@pytest.fixture(scope="session")
def two_results(tmp_path_factory):
    """A folder with the results of two methods on three scenes of the demo, not to be written to."""
    folder, clip, dataset = tmp_path_factory.mktemp("results"), ob.load_clip("demo"), ob.load_dataset("demo")
    fast = {"resize": "none", "window": 48, "stride": 48}
    run_jobs([make_job(name, clip, dataset, overrides=fast) for name in ("clip", "sclip")], limit=3, output=folder, quiet=True)
    return folder


@pytest.fixture(scope="session")
def networks(tmp_path_factory):
    """Folders of a tiny SAM and a tiny SAM 2 with random weights, as save_pretrained writes them, by kind."""
    import transformers

    prompts = {"hidden_size": 16, "image_size": SIDE, "patch_size": 16, "mask_input_channels": 4}
    decoder = {"hidden_size": 16, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
    vision = {
        "hidden_size": 32,
        "output_channels": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": 16,
        "window_size": 3,
        "global_attn_indexes": [1],
        "num_pos_feats": 8,
        "mlp_dim": 64,
    }
    hiera = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 8,
        "image_size": [SIDE, SIDE],
        "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": [8, 16, 32, 64],
        "num_attention_heads_per_stage": [1, 1, 2, 2],
        "window_size_per_stage": [4, 2, 2, 2],
        "global_attention_blocks": [3],
    }
    pyramid = {
        "backbone_config": hiera,
        "backbone_channel_list": [64, 32, 16, 8],
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        "fpn_hidden_size": 16,
    }
    parts = {"prompt_encoder_config": prompts, "mask_decoder_config": decoder}
    models = {
        "sam": transformers.SamModel(transformers.SamConfig(vision_config=vision, **parts)),
        "sam2": transformers.Sam2Model(transformers.Sam2Config(vision_config=pyramid, **parts)),
    }
    folders = {}
    for kind, model in models.items():
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for _, parameter in sorted(model.named_parameters()):
                if parameter.ndim > 1:
                    spread = 2 * parameter[0].numel() ** -0.5
                    parameter.copy_(spread * torch.randn(parameter.shape, generator=generator))
        folders[kind] = tmp_path_factory.mktemp(kind)
        model.save_pretrained(folders[kind])
    return folders
