"""Diffusion attention against a plain computation on tiny models in the layout of diffusers, and the demo's stand-in."""

import json
import shutil

import diffusers
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

import ovss_bench as ob
from ovss_bench.encoders.diffusion import attentions_of, load_diffusion
from ovss_bench.files import CONFIGS, config_names, load_config
from parity.seeded import rgb_image

# scheduler/scheduler_config.json of Stable Diffusion 1.x and 2.1-base
PNDM = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "skip_prk_steps": True, "steps_offset": 1}
IMAGE = rgb_image(1, 50, 70)
SIDE = 32


def randomised(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            fan = parameter[0].numel() if parameter.ndim > 1 else 100
            parameter.add_(torch.randn(parameter.shape, generator=generator) * fan**-0.5)
    return model.eval()


def save_vae(folder, **options):
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    channels = {"block_out_channels": (8, 8), "norm_num_groups": 4, "latent_channels": 4}
    randomised(diffusers.AutoencoderKL(**blocks, **channels, **options), 1).save_pretrained(folder / "vae")


def save_unet(folder, **options):
    channels = {"block_out_channels": (16, 32), "norm_num_groups": 4, "sample_size": SIDE // 2}
    randomised(diffusers.UNet2DConditionModel(**channels, **options), 2).save_pretrained(folder / "unet")


def save_text(folder, suffix="", kind=CLIPTextModel, width=16):
    sizes = {"hidden_size": width, "intermediate_size": 32, "projection_dim": 12, "num_hidden_layers": 3}
    tokens = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = CLIPTextConfig(vocab_size=4, num_attention_heads=2, max_position_embeddings=7, **tokens, **sizes)
    randomised(kind(config), 3).save_pretrained(folder / f"text_encoder{suffix}")
    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a": 2, "a</w>": 3}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=7)
    tokenizer.save_pretrained(folder / f"tokenizer{suffix}")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The arrangement of Stable Diffusion with two stages: down 2 attentions, middle 1, up 3; two heads."""
    folder = tmp_path_factory.mktemp("sd") / "tiny-sd"
    save_vae(folder)
    stages = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    save_unet(folder, **stages, cross_attention_dim=16, attention_head_dim=2)
    diffusers.PNDMScheduler(**PNDM).save_pretrained(folder / "scheduler")
    save_text(folder)
    return folder


@pytest.fixture(scope="module")
def tiny_xl(tmp_path_factory):
    """The arrangement of SDXL: two text encoders, two transformer blocks per attention, Euler's schedule."""
    folder = tmp_path_factory.mktemp("sd") / "tiny-xl"
    save_vae(folder)
    save_unet(
        folder,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        cross_attention_dim=16 + 20,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=12 + 6 * 8,
    )
    betas = {name: PNDM[name] for name in ("beta_start", "beta_end", "beta_schedule", "steps_offset")}
    diffusers.EulerDiscreteScheduler(**betas, timestep_spacing="leading").save_pretrained(folder / "scheduler")
    save_text(folder)
    save_text(folder, "_2", CLIPTextModelWithProjection, width=20)
    return folder


class Everything(AttnProcessor):
    """Keeps every map of a UNet, in the order in which the attentions run."""

    def __init__(self, maps):
        self.maps = maps

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, *args, **kwargs):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k = attn.head_to_batch_dim(attn.to_q(hidden_states)), attn.head_to_batch_dim(attn.to_k(context))
        self.maps.append((q @ k.transpose(1, 2) * (q.shape[-1] ** -0.5)).softmax(-1))
        return super().__call__(attn, hidden_states, encoder_hidden_states, *args, **kwargs)


@torch.no_grad()
def all_maps(folder, scheduler, context, **conditions):
    """The specification, step by step, with diffusers' own parts (cliper.md section 5.1)."""
    vae = diffusers.AutoencoderKL.from_pretrained(folder, subfolder="vae", low_cpu_mem_usage=False)
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder, subfolder="unet", low_cpu_mem_usage=False)
    picture = torch.from_numpy(IMAGE).permute(2, 0, 1)[None].float() / 255
    pixels = VaeImageProcessor(vae_scale_factor=2).preprocess(picture, SIDE, SIDE)
    latents = vae.encode(pixels).latent_dist.mean * 0.18215
    scheduler.set_timesteps(50)
    t = scheduler.timesteps[45]
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    noisy = scheduler.scale_model_input(scheduler.add_noise(latents, noise, t[None]), t)
    maps = []
    unet.set_attn_processor(Everything(maps))
    unet(noisy, t, context, **conditions)
    return maps


@torch.no_grad()
def text_output(folder, kind=CLIPTextModel, suffix=""):
    model = kind.from_pretrained(folder / f"text_encoder{suffix}")
    return model(torch.tensor([[0, 1, 1, 1, 1, 1, 1]]), output_hidden_states=True)  # start, end, padded by ends


def test_maps_are_those_of_a_plain_computation(tiny):
    maps = all_maps(tiny, diffusers.PNDMScheduler(**PNDM), text_output(tiny).last_hidden_state)
    assert len(maps) == 12
    model = load_diffusion(tiny)
    result = model(IMAGE)
    assert [m.shape for m in result] == [(2, 256, 256)] * 2
    for actual, expected in zip(result, (maps[-4], maps[-6]), strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(actual.sum(-1), torch.ones(2, 256))
    assert (maps[-4] - maps[-6]).abs().max() > 1e-3
    # Other layers, in the order in which they are asked for: the middle runs between down and up.
    for layers in ([4, 0], [-12, 6, -2]):
        for actual, layer in zip(load_diffusion(tiny, attention_layers=layers)(IMAGE), layers, strict=True):
            torch.testing.assert_close(actual, maps[layer], atol=1e-6, rtol=1e-4)


def test_sdxl_has_two_text_encoders_and_is_told_sizes(tiny_xl):
    first = text_output(tiny_xl)
    second = text_output(tiny_xl, CLIPTextModelWithProjection, "_2")
    context = torch.cat([first.hidden_states[2], second.hidden_states[2]], -1)  # after two of the three layers
    told = {"text_embeds": second.text_embeds, "time_ids": torch.tensor([[SIDE, SIDE, 0, 0, SIDE, SIDE]])}
    scheduler = diffusers.EulerDiscreteScheduler.from_pretrained(tiny_xl, subfolder="scheduler")
    maps = all_maps(tiny_xl, scheduler, context, added_cond_kwargs=told)
    model = load_diffusion(tiny_xl)
    assert model.timestep == 81
    for actual, layer in zip(model(IMAGE), (-4, -6), strict=True):
        assert actual.shape == (4, 64, 64)
        torch.testing.assert_close(actual, maps[layer], atol=1e-6, rtol=1e-4)
    half = load_diffusion(tiny_xl, precision="bf16")
    assert half.vae.dtype == torch.float32
    assert half.unet.dtype == torch.bfloat16
    torch.testing.assert_close(half(IMAGE)[0], model(IMAGE)[0], atol=0.02, rtol=0)


def test_layers_are_counted_as_in_the_specification():
    """The 32 attentions of Stable Diffusion 1.x and 2.x: -4 and -6 are the first two self-attentions of the last stage."""
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20))
    attentions, last = attentions_of(unet), unet.up_blocks[3].attentions
    assert len(attentions) == 32
    assert attentions[-2] is last[2].transformer_blocks[0].attn1
    assert attentions[-4] is last[1].transformer_blocks[0].attn1
    assert attentions[-6] is last[0].transformer_blocks[0].attn1
    assert attentions[12] is unet.mid_block.attentions[0].transformer_blocks[0].attn1
    assert attentions[-4].heads == 5


def test_nothing_but_the_asked_layers_is_computed(tiny, monkeypatch):
    """The others keep the fused attention, and what comes after the last map does not run."""
    model = load_diffusion(tiny, attention_layers=[-6, 0])
    attentions = attentions_of(model.unet)
    noted = [i for i, attention in enumerate(attentions) if type(attention.processor) is not AttnProcessor2_0]
    assert noted == [0, 6]
    ran, scores = [], []
    for i, attention in enumerate(attentions):
        attention.register_forward_pre_hook(lambda module, inputs, i=i: ran.append(i))
        own = attention.get_attention_scores
        monkeypatch.setattr(attention, "get_attention_scores", lambda *a, i=i, own=own: scores.append(i) or own(*a))
    model(IMAGE)
    assert ran == list(range(7))
    assert scores == [0, 6]
    assert not model._maps  # nothing is kept between images


def test_same_image_same_maps(tiny):
    model = load_diffusion(tiny)
    first = model(IMAGE)
    model(IMAGE[::-1])
    assert all(torch.equal(a, b) for a, b in zip(first, model(IMAGE), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first, load_diffusion(str(tiny))(IMAGE), strict=True))
    assert not torch.equal(first[0], load_diffusion(tiny, seed=1)(IMAGE)[0])


def test_digest_is_that_of_weights_and_settings(tiny, tmp_path):
    own = load_diffusion(tiny).digest
    copy = shutil.copytree(tiny, tmp_path / "copy")
    assert load_diffusion(copy).digest == own
    model = CLIPTextModel.from_pretrained(copy / "text_encoder")
    randomised(model, 9).save_pretrained(copy / "text_encoder")
    given = [{"seed": 1}, {"attention_layers": [-6, -4]}, {"time_step": 44}, {"image_size": 64}, {"precision": "bf16"}]
    others = [load_diffusion(copy).digest, *(load_diffusion(tiny, **options).digest for options in given)]
    assert len({own, *others}) == 7


def test_timestep_of_stable_diffusion():
    """cliper.md section 5.1: 51 entries, t = 101."""
    model = load_diffusion("demo")
    assert {name: model.scheduler.config[name] for name in PNDM} == PNDM
    assert len(model.scheduler.timesteps) == 51
    assert model.timestep == 101


def test_wrong_settings_are_errors(tiny, tmp_path):
    with pytest.raises(ob.OvssError, match="attention layer -3 is a cross-attention"):
        load_diffusion(tiny, attention_layers=[-4, -3])
    with pytest.raises(ob.OvssError, match=r"attention layer 12: the UNet .* has 12"):
        load_diffusion(tiny, attention_layers=[12])
    with pytest.raises(ob.OvssError, match=r"time_step=51: the schedule .* has 51"):
        load_diffusion(tiny, time_step=51)
    with pytest.raises(ob.OvssError, match="unknown precision 'fp8'"):
        load_diffusion(tiny, precision="fp8")
    with pytest.raises(ob.OvssError, match=r"unknown diffusion 'sd21'\. .*sd21_base"):
        load_diffusion("sd21")
    with pytest.raises(ob.OvssError, match="no/such/folder does not exist"):
        load_diffusion("no/such/folder")
    broken = shutil.copytree(tiny, tmp_path / "broken")
    shutil.rmtree(broken / "vae")
    with pytest.raises(ob.OvssError, match="not a complete diffusion model"):
        load_diffusion(broken)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("unet/config.json", lambda config: config | {"cross_attention_dim": 24}, "not a complete diffusion model"),
        ("text_encoder/config.json", lambda config: config | {"hidden_size": [3]}, "not a complete diffusion model"),
        ("scheduler/scheduler_config.json", lambda config: config | {"_class_name": "DiffusionPipeline"}, "is not a scheduler"),
        ("vae/config.json", lambda config: config | {"scaling_factor": [1]}, "cannot be used"),
        ("unet/config.json", lambda config: config | {"sample_size": [3, 4]}, "cannot be used"),
        ("unet/diffusion_pytorch_model.safetensors", None, r"1 tensors of UNet2DConditionModel are missing.*\(conv_in.bias"),
        ("text_encoder/model.safetensors", None, "1 tensors of CLIPTextModel are missing"),
    ],
)
def test_what_does_not_fit_together_is_refused(file, change, message, tiny, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "copy")
    path = folder / file
    if change:
        path.write_text(json.dumps(change(json.loads(path.read_text()))))
    else:  # both libraries would make up what is missing
        state = load_file(path)
        del state[next(name for name in sorted(state) if name.endswith("bias"))]
        save_file(state, path, {"format": "pt"})
    with pytest.raises(ob.OvssError, match=message):
        load_diffusion(folder)


def test_missing_weights_name_repository_and_folder(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ob.OvssError, match=r"stabilityai/stable-diffusion-2-1-base .*diffusion=/path/to/stable-diffusion-2-1"):
        load_diffusion("sd21_base")
    shutil.copytree(tiny, tmp_path / "stable-diffusion-2-1-base")
    monkeypatch.setenv("OVSS_WEIGHTS", str(tmp_path))
    model = load_diffusion("sd21_base", image_size=SIDE)
    assert torch.equal(model(IMAGE)[0], load_diffusion(tiny)(IMAGE)[0])
    assert load_diffusion("sd21_base").image_size == 512


@pytest.mark.parametrize("name", config_names("diffusion"))
def test_entries_are_complete_and_say_where_values_come_from(name):
    entry = load_config("diffusion", name)
    keys = {"stand_in", "weights_seed"} if entry.get("stand_in") else {"repo"}
    assert set(entry) == keys | {"licence", "training", "attention_layers", "time_step", "steps", "image_size"}
    lines = [line for line in (CONFIGS / "diffusion" / f"{name}.yaml").read_text().splitlines() if not line.startswith("#")]
    assert all("# " in line for line in lines if line != "stand_in: true")


class TestStandIn:
    def test_follows_pieces_of_cloth(self):
        """Area under the ROC curve: attention between patches of one label against that between two."""
        model, dataset = load_diffusion("demo"), ob.load_dataset("demo_tune")
        assert model.stand_in
        areas = []
        for sample in dataset.samples[:4]:
            label = torch.from_numpy(dataset.label(sample)).float()
            label = F.interpolate(label[None, None], (32, 32))[0, 0].flatten()
            pairs = (label[:, None] != 255) & (label != 255) & ~torch.eye(1024, dtype=torch.bool)
            for attention in model(dataset.image(sample)):
                assert attention.shape == (1, 1024, 1024)
                same = (label[:, None] == label)[pairs]
                ranks = attention[0][pairs].argsort().argsort().double()
                n, m = int(same.sum()), int((~same).sum())
                areas.append((ranks[same].sum() - n * (n - 1) / 2) / (n * m))
        assert np.mean(areas) > 0.9

    def test_says_that_it_is_one(self, tiny):
        assert not load_diffusion(tiny).stand_in
        assert "stand-in" in (CONFIGS / "diffusion" / "demo.yaml").read_text()

    def test_weights_come_from_the_seed(self):
        model = load_diffusion("demo")
        torch.rand(1)  # not from the generator of torch
        assert load_diffusion("demo").digest == model.digest
        state = model.unet.state_dict()
        weight = state["up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_q.weight"]
        expected = [-0.3808355, 0.0101894]  # of numpy's RandomState, which does not change
        torch.testing.assert_close(weight[0, :2], torch.tensor(expected), atol=1e-6, rtol=0)

    def test_latents_are_smoothed_colours(self):
        model = load_diffusion("demo")
        latents = model.latents(IMAGE)
        assert latents.shape == (1, 3, 32, 32)
        assert latents.square().mean() == pytest.approx(9, rel=1e-3)
        pixels = torch.from_numpy(IMAGE).permute(2, 0, 1)[None].float()
        means = F.adaptive_avg_pool2d(F.interpolate(pixels, (128, 128)), (32, 32)) - 127.5
        both = torch.stack([latents.flatten(), means.flatten()])
        assert torch.corrcoef(both)[0, 1] > 0.9
