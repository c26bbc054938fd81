"""The language model: parity with LLaVA, its folders in every layout, its answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import init_empty_weights
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoTokenizer

from projects.lego import convert
from projects.lego.losses import token_cross_entropy
from projects.lego.model import vlm_files
from projects.lego.model.vision import clip_pixels
from projects.lego.model.vlm import Vlm
from projects.lego.prompts import IGNORED, IMAGE
from tests.support import GOLDEN, Case, Parity, cases, fill

VISION = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 28,
    "patch_size": 14, "hidden_act": "quick_gelu",
}  # fmt: skip
TEXT = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
    "intermediate_size": 172, "vocab_size": 320, "rms_norm_eps": 1e-5,
}  # fmt: skip


def llava_folder(folder: Path, weights: dict[str, torch.Tensor]) -> Path:
    """A folder in LLaVA's own layout."""
    folder.mkdir()
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "model.safetensors")
    config = {"model_type": "llava", "mm_hidden_size": 32, "mm_vision_tower": "here", **TEXT}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def case() -> Case:
    return cases("lego", "llava_features")[0]


@pytest.fixture(scope="module")
def net(case: Case, tmp_path_factory) -> Vlm:
    """The golden network, opened from LLaVA's own layout without and CLIP's folder for the image tower."""
    place = tmp_path_factory.mktemp("vlm")
    weights = case.weights()
    tower = {n.split("vision_tower.vision_tower.")[1]: v for n, v in weights.items() if "vision_tower" in n}
    clip = place / "clip"
    clip.mkdir()
    save_file(tower, clip / "model.safetensors")
    (clip / "config.json").write_text(json.dumps({"vision_config": VISION}))
    llava = llava_folder(place / "llava", {n: v for n, v in weights.items() if "vision_tower" not in n})
    model, report = vlm_files.open_vlm(llava, vision=clip)
    assert "image tower from" in str(report)
    assert report.loaded + len(report.ignored) == len(weights)
    assert all("inv_freq" in name or "position_ids" in name for name in report.ignored)
    return model


@pytest.mark.golden
def test_features_and_loss(parity: Parity, case: Case, net: Vlm) -> None:
    expected = case.expected
    with np.load(case.path / "inputs.npz") as file:
        ids, labels, mask = (torch.from_numpy(file[name]) for name in ("input_ids", "labels", "attention_mask"))
    pixels = case.noise("in.pixel_values", (2, 3, 28, 28))
    with torch.no_grad():
        images = net.image_features(pixels)
        embedded, wide, _ = net.expand(ids, mask, images, labels)
        states = net.states(embedded, wide)
        logits = net.language.lm_head(states)
        parity.check("image_features", images, expected["image_features"], atol=2e-5)
        for row in range(2):
            real = wide[row].numpy()
            parity.check(f"last_hidden_{row}", states[row][real], expected["last_hidden"][row][real], atol=2e-5)
            parity.check(f"logits_{row}", logits[row][real][:, :64], expected["logits"][row][real], atol=2e-5)
        parity.check("loss", token_cross_entropy(net(ids, labels, mask, pixels)), expected["loss"], atol=2e-5)
        (answer,) = net.write([ids[0][mask[0]]], images[:1], generators=None, stop=[319], longest=6)
    parity.check("new_tokens", answer.ids, expected["new_tokens"])
    parity.check("text_features", answer.states, expected["text_features"], atol=2e-5)


@pytest.mark.golden
def test_the_published_names_fit_completely(parity: Parity) -> None:
    (layout,) = cases("lego", "vllm_checkpoint_layout")
    keys = layout.json("keys.json")
    text = {"hidden_size": 5120, "num_hidden_layers": 40, "num_attention_heads": 40, "intermediate_size": 13824,
            "vocab_size": 32000}  # fmt: skip
    tower = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
             "image_size": 224, "patch_size": 14}  # fmt: skip
    with init_empty_weights():
        net = Vlm(tower, text)
    own = {name: list(value.shape) for name, value in net.named_parameters()}
    found = {}
    for name, (shape, _) in keys.items():
        if not vlm_files.re.search(vlm_files.IGNORED, name):
            found[vlm_files._inside(name, net)] = shape
    assert found == own
    parity.check("names", len(found), len(own))


@pytest.mark.golden
def test_pixels(parity: Parity) -> None:
    (layout,) = cases("lego", "vllm_image_preprocess")
    for i, (height, width) in enumerate([(256, 455), (256, 341), (300, 200)]):
        shape = (height // 8, width // 8, 3)
        noise = fill.array(f"im.{i}", shape, "float32") * np.float32(np.sqrt(np.prod(shape[1:])))
        small = np.clip(50 * noise + 128, 0, 255).astype(np.uint8)
        image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
        pixels = clip_pixels(image)
        parity.check(f"px_{i}", pixels[:, ::7, ::7], layout.expected[f"px_{i}"], atol=1e-5)
        stats = torch.stack([pixels.mean(), pixels.std(correction=0), pixels.abs().max()])
        parity.check(f"stats_{i}", stats, layout.expected[f"stats_{i}"], atol=1e-4)


def small(kind: str = "linear", seed: int = 0) -> Vlm:
    torch.manual_seed(seed)
    return Vlm(VISION, TEXT, kind).eval()


def same(a: Vlm, b: Vlm) -> None:
    ours, theirs = a.state_dict(), b.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("layout", ["transformers", "llava"])
def test_a_saved_folder_opens_again(tmp_path: Path, kind: str, layout: str) -> None:
    net = small(kind)
    tokenizer = AutoTokenizer.from_pretrained(GOLDEN / "lego" / "llava_labels")
    folder = vlm_files.save_vlm(net, tokenizer, tmp_path / "saved", layout)
    opened, report = vlm_files.open_vlm(folder)
    assert report.layout == "ours"
    same(net, opened)
    (folder / vlm_files.MEMO).unlink()  # as somebody else would have written it
    if layout == "transformers":
        opened, report = vlm_files.open_vlm(folder)
        assert report.layout == "transformers"
    else:
        clip = tmp_path / "clip"
        clip.mkdir()
        (clip / "config.json").write_text(json.dumps(VISION))
        opened, report = vlm_files.open_vlm(folder, vision=clip)
        assert report.layout == "LLaVA"
    same(net, opened)
    vision, projector = vlm_files.open_vision(folder, vision=tmp_path / "clip" if layout == "llava" else "")
    pixels = torch.randn(2, 3, 28, 28)
    assert torch.equal(projector(vision(pixels)), net.image_features(pixels))
    found = vlm_files.open_tokenizer(folder)
    assert found.pad_token_id == 0
    assert found("open the drawer").input_ids == tokenizer("open the drawer").input_ids


def test_the_folder_is_one_of_transformers(tmp_path: Path) -> None:
    """Their own class reads the two-layer kind; the single layer of LEGO is not theirs."""
    from transformers import LlavaForConditionalGeneration

    net = small("mlp")
    folder = vlm_files.save_vlm(net, None, tmp_path / "saved")
    theirs, info = LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    pixels = torch.randn(1, 3, 28, 28)
    assert torch.allclose(theirs.model.get_image_features(pixels).pooler_output[0], net.image_features(pixels)[0])


def test_an_adapter_is_merged(tmp_path: Path) -> None:
    net = small()
    base = vlm_files.save_vlm(net, None, tmp_path / "base")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    name = "base_model.model.model.layers.1.self_attn.q_proj"
    a, b = torch.randn(4, 64), torch.randn(64, 4)
    torch.save({f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}, adapter / "adapter_model.bin")
    extra = torch.randn(64, 32)
    torch.save({"base_model.model.model.mm_projector.weight": extra}, adapter / "non_lora_trainables.bin")
    (adapter / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(base), "lora_alpha": 8, "r": 4})
    )
    opened, report = vlm_files.open_vlm(adapter)
    assert report.merged == 1
    before = net.language.model.layers[1].self_attn.q_proj.weight
    assert torch.allclose(opened.language.model.layers[1].self_attn.q_proj.weight, before + b @ a * 2, atol=1e-5)
    assert torch.equal(opened.projector.weight, extra)


def plain_base(folder: Path, net: Vlm) -> Path:
    """The language model alone, as LLaMA is published: two torch shards and an index."""
    folder.mkdir()
    state = {name.removeprefix("language."): v for name, v in net.state_dict().items() if name.startswith("language.")}
    names = sorted(state)
    index = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"pytorch_model-{number:05d}-of-00002.bin"
        torch.save({name: state[name] for name in part}, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **TEXT}))
    return folder


def clip_folder(folder: Path, net: Vlm) -> Path:
    folder.mkdir()
    tower = {n.removeprefix("vision.tower."): v for n, v in net.state_dict().items() if n.startswith("vision.tower.")}
    tower = {f"vision_model.{name.removeprefix('vision_model.')}": value for name, value in tower.items()}
    save_file(tower, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"vision_config": VISION}))
    return folder


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("rank_stabilized", [False, True])
def test_parts_as_llava_trains_them(tmp_path: Path, kind: str, rank_stabilized: bool) -> None:
    """LoRA pairs with what else was trained, or a projector alone, on top of a plain language model and CLIP."""
    net = small(kind)
    base, clip = plain_base(tmp_path / "base", net), clip_folder(tmp_path / "clip", net)
    projector = {f"model.mm_{name}": v for name, v in net.state_dict().items() if name.startswith("projector.")}
    config = {"model_type": "llava", **TEXT, "mm_vision_tower": "clip", "_name_or_path": str(base)}
    config["mm_projector_type"] = {"linear": "linear", "mlp": "mlp2x_gelu"}[kind]
    alone, adapter = tmp_path / "projector", tmp_path / "lora"
    for folder in (alone, adapter):
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
    torch.save(projector, alone / "mm_projector.bin")
    opened, report = vlm_files.open_vlm(alone, vision=clip)
    assert report.layout == "LLaVA"
    same(net, opened)
    place = "model.layers.1.self_attn.q_proj"
    a, b = torch.randn(4, 64), torch.randn(64, 4)
    pair = {f"base_model.model.{place}.lora_A.weight": a, f"base_model.model.{place}.lora_B.weight": b}
    save_file(pair, adapter / "adapter_model.safetensors")
    torch.save({f"base_model.model.{name}": v for name, v in projector.items()}, adapter / "non_lora_trainables.bin")
    about = {"base_model_name_or_path": str(base), "lora_alpha": 8, "r": 4, "use_rslora": rank_stabilized}
    (adapter / "adapter_config.json").write_text(json.dumps(about))
    opened, report = vlm_files.open_vlm(adapter, vision=clip)
    assert report.merged == 1
    assert "merged 1 LoRA pairs" in str(report)
    weight = net.get_parameter(f"language.{place}.weight")
    with torch.no_grad():
        weight += b @ a * (4 if rank_stabilized else 2)
    assert torch.allclose(opened.get_parameter(f"language.{place}.weight"), weight, atol=1e-5)
    opened.get_parameter(f"language.{place}.weight").data.copy_(weight)
    same(net, opened)
    vision, found = vlm_files.open_vision(adapter, vision=clip)
    pixels = torch.randn(1, 3, 28, 28)
    assert torch.equal(found(vision(pixels)), net.image_features(pixels))
    (base / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(ValueError, match=r"index\.json: names pytorch_model-00002-of-00002\.bin, which are not there"):
        vlm_files.open_vlm(alone, vision=clip)
    base.rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=r"its base model .*base is no folder here; put it at"):
        vlm_files.open_vlm(adapter, vision=clip)


def test_a_folder_that_transformers_wrote(tmp_path: Path) -> None:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    sizes = {"vision_config": CLIPVisionConfig(**VISION), "text_config": LlamaConfig(**TEXT)}
    theirs = LlavaForConditionalGeneration(LlavaConfig(**sizes, image_token_index=319, image_seq_length=4)).eval()
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="100KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    net, report = vlm_files.open_vlm(tmp_path / "theirs")
    assert (report.layout, net.kind, report.ignored) == ("transformers", "mlp", [])
    pixels, ids = torch.randn(1, 3, 28, 28), torch.tensor([[1, 319, 319, 319, 319, 7, 8]])
    with torch.no_grad():
        expected = theirs(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids)).logits
        short = torch.tensor([[1, IMAGE, 7, 8]])
        embedded, mask, _ = net.expand(short, torch.ones_like(short, dtype=torch.bool), net.image_features(pixels))
        found = net.language.lm_head(net.states(embedded, mask))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_the_command_turns_one_layout_into_the_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = small()
    tokenizer = AutoTokenizer.from_pretrained(GOLDEN / "lego" / "llava_labels")
    folder = vlm_files.save_vlm(net, tokenizer, tmp_path / "ours")
    convert.main([str(folder), str(tmp_path / "llava"), "--to", "llava"])
    with safe_open(tmp_path / "llava" / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert {"model.mm_projector.weight", "model.layers.0.self_attn.q_proj.weight", "lm_head.weight"} <= names
    assert json.loads((tmp_path / "llava" / "config.json").read_text())["model_type"] == "llava"
    convert.main([str(tmp_path / "llava"), str(tmp_path / "back")])
    same(net, vlm_files.open_vlm(tmp_path / "back")[0])
    assert (tmp_path / "back/model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    with pytest.raises(SystemExit):
        convert.main([str(folder), str(tmp_path / "x"), "--to", "diffusers"])
    assert "is a language model; --to diffusers is for the diffusion stage" in capsys.readouterr().err


def test_what_does_not_fit_is_named(tmp_path: Path, case: Case) -> None:
    weights = case.weights()
    folder = llava_folder(tmp_path / "llava", {n: v for n, v in weights.items() if "mm_projector" not in n})
    clip = tmp_path / "clip"
    clip.mkdir()
    (clip / "config.json").write_text(json.dumps(VISION))
    with pytest.raises(ValueError, match=r"2 weights are missing, such as projector"):
        vlm_files.open_vlm(folder, vision=clip)
    folder = llava_folder(tmp_path / "other", weights | {"model.layers.7.mlp.up_proj.weight": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"model\.layers\.7\.mlp\.up_proj\.weight has no place"):
        vlm_files.open_vlm(folder, vision=clip)
    with pytest.raises(ValueError, match="no such folder"):
        vlm_files.open_vlm(tmp_path / "nowhere")


def test_padding_and_neighbours_change_nothing() -> None:
    net = small()
    pixels = torch.randn(3, 3, 28, 28)
    images = net.image_features(pixels)
    prompts = [torch.tensor([1, 5, IMAGE, 9]), torch.tensor([1, IMAGE, 7, 8, 11, 12]), torch.tensor([1, 6, IMAGE])]

    def answers(rows: list[int]) -> list[list[int]]:
        generators = [torch.Generator().manual_seed(row) for row in rows]
        found = net.write(
            [prompts[row] for row in rows], images[rows], generators=generators, stop=[2], longest=7, temperature=1.0
        )
        return [answer.ids.tolist() for answer in found]

    together = answers([0, 1, 2])
    assert together == [answers([row])[0] for row in range(3)]
    assert answers([2, 0]) == [together[2], together[0]]
    assert len({tuple(answer) for answer in together}) == 3


def test_an_answer_ends_with_its_stop_token() -> None:
    net = small()
    image = net.image_features(torch.randn(1, 3, 28, 28))
    prompt = torch.tensor([1, IMAGE, 9])
    (long,) = net.write([prompt], image, generators=None, stop=[], longest=5)
    assert len(long.ids) == 5
    stop = int(long.ids[2])
    (short,) = net.write([prompt], image, generators=None, stop=[stop], longest=5)
    assert short.ids.tolist() == long.ids[: long.ids.tolist().index(stop) + 1].tolist()
    assert short.states.shape == (len(short.ids), 64)
    # The states are those of the whole text read at once.
    text = torch.cat([prompt, long.ids])[None]
    embedded, mask, _ = net.expand(text, torch.ones_like(text, dtype=torch.bool), image)
    whole = net.states(embedded, mask)[0, -6:-1]
    assert torch.allclose(long.states, whole, atol=1e-5)


def test_only_learned_positions_meet_the_vocabulary() -> None:
    net = small()
    ids = torch.tensor([[1, IMAGE, 7, 8, 9, 2], [1, 4, IMAGE, 5, 2, 0]])
    mask = torch.tensor([[True] * 6, [True] * 5 + [False]])
    labels = torch.full_like(ids, IGNORED)
    labels[0, 3:], labels[1, 3:5] = ids[0, 3:], ids[1, 3:5]
    learned = net(ids, labels, mask, torch.randn(2, 3, 28, 28))
    assert learned.targets.tolist() == [8, 9, 2, 5, 2]
    assert learned.logits.shape == (5, 320)
    with pytest.raises(ValueError, match=r"every text needs one image, these have \[0, 1\]"):
        net(
            ids.masked_fill(ids == IMAGE, 3).index_copy(0, torch.tensor([1]), ids[1:]),
            labels,
            mask,
            torch.randn(2, 3, 28, 28),
        )
