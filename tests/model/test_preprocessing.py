"""Loading a checkpoint's folder as transformers writes it: tokenizer, picture format and weights."""

import json

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from bbu_train.conversation.builder import ConversationBuilder
from bbu_train.conversation.order import ReadingOrder
from bbu_train.errors import InputError
from bbu_train.model import preprocessing, qwen25vl
from bbu_train.model.shape import configuration
from bbu_train.model.tiny_tokenizer import tiny_tokenizer

LIMITS = {"min_pixels": 3136, "max_pixels": 37632}
# Different from those of random weights, so the tests see that the checkpoint's own are used.
PROCESSOR = Qwen2VLImageProcessorPil(image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4], **LIMITS)


@pytest.fixture(scope="module")
def shape(config):
    return OmegaConf.to_container(config().model.shape, resolve=True)


@pytest.fixture(scope="module")
def saved(shape):
    torch.manual_seed(3)
    image = tiny_tokenizer(700).convert_tokens_to_ids("<|image_pad|>")
    return Qwen2_5_VLForConditionalGeneration(configuration(None, "random", shape | {"image_token_id": image})).eval()


@pytest.fixture(scope="module")
def checkpoint(saved, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    for part in (saved, tiny_tokenizer(700), PROCESSOR):
        part.save_pretrained(folder)
    return str(folder)


def build(checkpoint, weights="pretrained", shape=None, **limits):
    return preprocessing.build(checkpoint, weights, shape or {}, **(LIMITS | {"teacher_cache_gib": 0} | limits))


def load(checkpoint):
    return qwen25vl.build(
        checkpoint,
        "pretrained",
        {},
        attention="sdpa",
        precision="fp32",
        vocabulary_chunk=64,
        vision_mlp_multiple=1,
        image_position_scale=0,
        teacher_cache_gib=0,
        compile=False,
        device=torch.device("cpu"),
        head=lambda width: None,
    ).eval()


def test_the_tokenizer_comes_from_the_checkpoint(checkpoint):
    assert build(checkpoint).tokenizer.get_vocab() == tiny_tokenizer(700).get_vocab()


def test_the_picture_format_and_the_positions_come_from_the_checkpoint(checkpoint, saved):
    built = build(checkpoint, max_pixels=50_000)
    picture_format, vision = built.picture_format, saved.config.vision_config
    assert picture_format.patch_size == vision.patch_size == 14
    assert picture_format.merge_size == vision.spatial_merge_size == 2
    assert picture_format.window_size == vision.window_size
    assert (picture_format.min_pixels, picture_format.max_pixels) == (3136, 50_000)
    assert built.max_positions == saved.config.text_config.max_position_embeddings


def test_a_loaded_model_computes_the_features_and_hidden_states_of_the_saved_one(checkpoint, saved, samples, collate):
    built = build(checkpoint)
    prompts = "You are an inspector.", "List every object."
    builder = ConversationBuilder(built.tokenizer, built.picture_format, *prompts, ReadingOrder(), "qwen")
    sample = samples[0]
    encoded = builder.encode(builder.converse(sample, sample.teachers, with_answer=True))
    batch = collate("packed", [encoded])
    pictures = [Image.open(picture.path) for picture in (*sample.teachers, sample.student)]
    processed = PROCESSOR(images=pictures, return_tensors="pt")
    model = load(checkpoint)
    with torch.no_grad():
        features = model.encode_images(batch)
        hidden = model.hidden_states(batch, features)
        stock = saved.model(
            input_ids=encoded.input_ids[None],
            mm_token_type_ids=(encoded.input_ids == builder.tokenizer.image)[None].int(),
            **processed,
        ).last_hidden_state[0]
        stock_features = saved.model.visual(processed["pixel_values"], grid_thw=processed["image_grid_thw"])
    torch.testing.assert_close(features, stock_features.pooler_output, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(hidden, stock, atol=2e-5, rtol=1e-4)


def test_a_loaded_model_has_every_weight_of_the_saved_one_in_float32(checkpoint, saved):
    loaded = dict(load(checkpoint).backbone.named_parameters())
    assert loaded.keys() == dict(saved.named_parameters()).keys()
    for name, weight in saved.named_parameters():
        assert loaded[name].dtype == torch.float32
        assert torch.equal(loaded[name], weight)


def test_random_weights_need_no_checkpoint(shape):
    built = build(None, weights="random", shape=shape)
    assert len(built.tokenizer) <= shape["text_config"]["vocab_size"]
    assert built.picture_format.window_size == shape["vision_config"]["window_size"]


@pytest.mark.parametrize("limits", [{"min_pixels": 783}, {"min_pixels": 40_000}])
def test_pixel_limits_that_admit_no_picture_are_refused(shape, limits):
    with pytest.raises(InputError, match=r"model.min_pixels=\d+ .*784 <= min_pixels <= max_pixels"):
        build(None, weights="random", shape=shape, **limits)


@pytest.mark.parametrize("gib", [-1, float("nan"), float("inf")])
def test_an_impossible_size_of_the_teacher_cache_is_refused(shape, gib):
    with pytest.raises(InputError, match=r"model.teacher_cache_gib is .*0 \(none\) or above"):
        build(None, weights="random", shape=shape, teacher_cache_gib=gib)


def test_teachers_are_kept_apart_only_with_a_teacher_cache(shape):
    for gib in (0, 0.5):
        built = build(None, weights="random", shape=shape, teacher_cache_gib=gib)
        assert built.picture_format.teachers_apart == (gib > 0)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    with pytest.raises(InputError, match="holds a qwen2 model; expected qwen2_5_vl"):
        build(str(tmp_path))
